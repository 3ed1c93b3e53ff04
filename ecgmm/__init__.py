__version__ = "0.1.0"


class EcgmmError(ValueError):
    "What a person can mend: input, options, files, disk; it names the file and what was needed."

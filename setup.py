"The package's metadata lives in settings.ini; this file only hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
words = lambda key: cfg[key].split()
scripts = [line.strip() for line in cfg["console_scripts"].splitlines() if line.strip()]

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"],
    long_description=Path("README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    author=cfg["author"], author_email=cfg["author_email"], url=cfg["git_url"], license="MIT",
    packages=find_packages(include=["ecgmm", "ecgmm.*"]), package_data={"ecgmm": ["tables/*", "raw_results/*"]},
    python_requires=f">={cfg['min_python']}", install_requires=words("requirements"),
    extras_require={"dev": words("dev_requirements")},
    entry_points={"console_scripts": scripts, "nbdev": ["ecgmm=ecgmm._modidx:d"]},
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research",
                 "License :: OSI Approved :: MIT License", "Programming Language :: Python :: 3"],
    zip_safe=False)

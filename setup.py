"The package's metadata lives in settings.ini; this file only hands it to setuptools."

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
config = ConfigParser(delimiters=["="])
config.read_string((HERE / "settings.ini").read_text(encoding="utf-8"))
cfg = config["DEFAULT"]


def words(key):
    return cfg[key].split()


def absolute_links(markdown):
    "Links to files of the repository, as they read where the README stands alone; code is left as it is."

    def whole(m):
        raw = m[1].startswith(("![", "src"))
        return f"{m[1]}{m[2]}{cfg['git_url']}/{'raw' if raw else 'blob'}/{cfg['branch']}/{m[3]}"

    link = re.compile(r"""(!?\[[^\]]*|src=|href=)(\]\(|["'])(?!\w+:|[#/])([^\s)"']+)""")
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)
    return "".join(part if k % 2 else link.sub(whole, part) for k, part in enumerate(parts))


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    keywords=", ".join(words("keywords")),
    long_description=absolute_links((HERE / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    project_urls={
        "Documentation": cfg["doc_host"] + cfg["doc_baseurl"],
        "Source": cfg["git_url"],
        "Issues": cfg["git_url"] + "/issues",
        "Changelog": f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md",
    },
    license_expression="MIT AND BSD-2-Clause AND CC-BY-4.0",  # the code, the Challenge's and PTB-XL's tables
    license_files=["LICENSE", "ecgmm/tables/LICENSE"],
    packages=find_packages(include=["ecgmm", "ecgmm.*"]),
    package_data={"ecgmm": ["tables/*", "raw_results/*", "py.typed"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=words("requirements"),
    extras_require={"dev": words("dev_requirements")},
    entry_points={
        "console_scripts": [
            line.strip() for line in cfg["console_scripts"].splitlines() if line.strip()
        ],
        "nbdev": ["ecgmm=ecgmm._modidx:d"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Developers",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: {version}" for version in words("pythons")),
    ],
    zip_safe=False,
)

"""Packaging: every fact stands in settings.ini, which nbdev reads too."""
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def listed(key): return shlex.split(cfg.get(key, ""))


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    keywords=cfg["keywords"].split(),
    packages=find_packages(include=["vlm_agent", "vlm_agent.*"]),
    include_package_data=True,
    python_requires=">=" + cfg["min_python"],
    install_requires=listed("requirements"),
    extras_require={"browser": listed("browser_requirements"), "dev": listed("dev_requirements")},
    entry_points={
        "console_scripts": listed("console_scripts"),
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
    classifiers=["Programming Language :: Python :: 3", "Intended Audience :: Developers"],
    zip_safe=False,
)

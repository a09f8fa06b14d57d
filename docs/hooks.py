"""Hooks of MkDocs: which files are pages, and the fences of code blocks that tests read."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "examples/*/README.md")
BESIDE = ("CITATION.cff", "docs/*.png", "docs/*.css")  # what pages link to


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Pages keep their paths below the root of the repository, so that their links are right there and on the site."""
    root = Path(config.config_file_path).parent
    paths = [path.relative_to(root).as_posix() for pattern in PAGES + BESIDE for path in sorted(root.glob(pattern))]
    ours = [File(path, str(root), config.site_dir, config.use_directory_urls) for path in paths]
    return Files([*ours, *(file for file in files if file.src_dir != config.docs_dir)])


def on_page_markdown(markdown: str, **_: object) -> str:
    """Show ``file=NAME`` of a code block as its title, and drop what only tests read."""
    markdown = re.sub(r"^```(\w+) file=(\S+)$", r'```\1 title="\2"', markdown, flags=re.MULTILINE)
    return re.sub(r"^```(\w+) needs=\w+$", r"```\1", markdown, flags=re.MULTILINE)

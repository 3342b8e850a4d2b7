"""A hook for MkDocs that gives the pages of the site the same relative paths as in the repository.

The pages in docs/ link to README.md, SECURITY.md and source files above their folder, and README.md links to
docs/. With the repository's layout, every relative link works on GitHub and on the site.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md")
LINKED = ("src/flashmore/measuring/record.py", "src/flashmore/measuring/record.schema.json")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by those of the repository that the site contains; keep the theme's."""
    root = Path(config.config_file_path).parent
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for pattern in (*PAGES, *LINKED):
        for path in sorted(root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files

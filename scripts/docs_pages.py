"""A hook for MkDocs that gives the pages of the site the same relative paths as in the repository.

The pages in docs/ link to README.md, SECURITY.md and source files above their folder, and README.md links to
docs/. With the repository's layout, every relative link works on GitHub and on the site.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/*.md",
    "docs/rules/*.md",
    "docs/pictures/*",
)
LIVE = "demo/names.html"
"""The page of the demo's two models, which the front page shows."""
LINKED = (
    "docs/site.css",
    "src/flashmore/measuring/record.py",
    "src/flashmore/measuring/record.schema.json",
    "notebooks/*.ipynb",
    "examples/*.yml",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by those of the repository that the site contains; keep the theme's."""
    root = Path(config.config_file_path).parent
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for pattern in (*PAGES, *LINKED, LIVE):
        for path in sorted(root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show the live page on the front page, after the introduction."""
    del config, files
    if page.file.src_uri != "README.md":
        return markdown
    introduction, picture, rest = markdown.partition("\n![")
    frame = f'<iframe src="{LIVE}" title="Make names" style="width: 100%; height: 40rem; border: 0"></iframe>'
    told = f"Try it: the two models of the demo, computed in this page ([open it on its own page]({LIVE}))."
    return f"{introduction}\n{told}\n\n{frame}\n{picture}{rest}"

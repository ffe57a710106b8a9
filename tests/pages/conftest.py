"""Where the screenshots go."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--images", help="Keep the screenshots in this folder.")

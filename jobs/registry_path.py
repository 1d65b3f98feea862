"""A SQLAlchemy plugin that makes a relative sqlite path mean the same wherever Feast is started from.

Feast hands `registry.path` to SQLAlchemy as it is, so a relative sqlite path would be looked up in the working
directory: `cd feature_repo && feast apply` and a notebook at the project's root would use two registries, the second
one new and empty. `feature_repo/feature_store.yaml` names this plugin (by its entry point, `tailrank_feature_repo`).
"""

from pathlib import Path

from sqlalchemy import URL
from sqlalchemy.engine import CreateEnginePlugin

FEATURE_REPO = Path(__file__).resolve().parent.parent / "feature_repo"


class FeatureRepoPath(CreateEnginePlugin):
    """Resolves a relative sqlite path against the folder `feature_repo`, and makes the folder it points into."""

    def update_url(self, url: URL) -> URL:
        """The URL with an absolute path; any other database is left alone."""
        path = Path(url.database or "")
        if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:" or path.is_absolute():
            return url
        absolute = (FEATURE_REPO / path).resolve()
        absolute.parent.mkdir(parents=True, exist_ok=True)
        return url.set(database=str(absolute))

"""What teachers have answered, kept so that nothing is asked twice: <lake>/relevance_cache/answers.sqlite.

An answer's address is a hash of all that decides it: the words of the prompt, the teacher, and the texts that it read.
So another model, another temperature or an edited title is another question, and ids of queries and items play no part.

Each answer is a transaction of its own in a write-ahead log: a process that is killed loses what it was writing, and
several processes read and write at once. Failed answers are kept, too: to ask again, ask with another seed.
"""

import hashlib
import json
import logging
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from embedders.label_tokens import TeacherAnswer
from embedders.relevance_prompts import PROMPT_VERSION, Label, QueryItem, parse

logger = logging.getLogger(__name__)

FILE = "answers.sqlite"
FILE_VERSION = 1
"""Of the table's columns; kept as the file's `user_version`."""

SECONDS_TO_WAIT = 60.0
"""For another process that is writing."""

ADDRESSES_AT_ONCE = 500


def address_of(pair: QueryItem, teacher_id: Mapping[str, str], facts: Sequence[str] = ()) -> str:
    """Where the answer lies: 64 hexadecimal digits.

    Args:
        pair: as the teacher reads it (`jobs.relevance.disclosed_text.disclosed`).
        teacher_id: all that decides an answer beside the pair: model, weights, decoding, chains, temperature, seed.
        facts: what rules that know the catalogue read off the pair for the teacher: another brand in the catalogue
            gives another answer to the pairs that name it, and to no others.
    """
    told = json.dumps([PROMPT_VERSION, sorted(teacher_id.items()), list(pair), list(facts)], ensure_ascii=False)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


class _Kept(BaseModel):
    """An answer as it is written down."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    v: Literal[1] = 1
    score: float | None
    probabilities: list[float] | None
    label: Label | None
    reasoning: str | None  # the line of the chain
    agreement: float | None
    num_chains: int
    num_parsed: int
    num_attempts: int
    num_tokens: int
    problems: list[str]


class AnswerCache:
    """Answers by address; may be shared by threads.

    Args:
        file: an sqlite file; made where there is none.

    Raises:
        ValueError: the file is not such a cache, is damaged, or is of another version.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._one_at_a_time = threading.Lock()
        file.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(
            file, timeout=SECONDS_TO_WAIT, isolation_level=None, check_same_thread=False, cached_statements=16
        )
        try:
            self._prepare()
        except (sqlite3.Error, ValueError) as error:
            self._database.close()
            raise self._broken(error) if isinstance(error, sqlite3.DatabaseError) else error from None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The cache of a folder."""
        return cls(folder / FILE)

    def _prepare(self) -> None:
        # survives the death of a process; a machine that loses power may lose the last answers, never the file
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute("BEGIN IMMEDIATE")
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        tables = {name for (name,) in self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables and version == 0:
            self._database.execute(
                "CREATE TABLE answers (address TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID"
            )
            self._database.execute(f"PRAGMA user_version = {FILE_VERSION}")
        elif version != FILE_VERSION or "answers" not in tables:
            self._database.execute("ROLLBACK")
            raise ValueError(
                f"answer cache {self.file}: expected an answer cache of version {FILE_VERSION}, got version {version} "
                f"with the tables {', '.join(sorted(tables)) or 'none'}. Use the version of this project that wrote "
                "it, or move the file away: what is asked again costs tokens again."
            )
        self._database.execute("COMMIT")

    def get(self, addresses: Iterable[str]) -> dict[str, TeacherAnswer]:
        """The answers that are there, by address.

        A row that cannot be read (damaged, or of another version of this project) counts as not there: it is asked
        again and written anew. How many there are is told.

        Raises:
            ValueError: the file is damaged.
        """
        wanted = list(dict.fromkeys(addresses))
        found: dict[str, TeacherAnswer] = {}
        problems: list[str] = []
        for start in range(0, len(wanted), ADDRESSES_AT_ONCE):
            some = wanted[start : start + ADDRESSES_AT_ONCE]
            query = f"SELECT address, answer FROM answers WHERE address IN ({','.join('?' * len(some))})"
            for address, answer in self._rows(query, some):
                try:
                    found[address] = _read(answer)
                except (ValueError, TypeError) as error:
                    problems.append(f"{address[:12]}: {str(error).splitlines()[0]}")
        if problems:
            logger.warning(
                "answer cache %s: %s of %s answers cannot be read and count as not asked (%s)",
                self.file,
                f"{len(problems):_}",
                f"{len(problems) + len(found):_}",
                "; ".join(problems[:3]),
            )
        return found

    def put(self, address: str, answer: TeacherAnswer) -> None:
        """Keep an answer; when this returns, a killed process does not lose it.

        Raises:
            ValueError: the file is damaged, or other processes write without a pause.
        """
        self._rows("INSERT OR REPLACE INTO answers VALUES (?, ?)", [address, _written(answer)])

    def __len__(self) -> int:
        return int(self._rows("SELECT count(*) FROM answers", [])[0][0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what is kept stays."""
        with self._one_at_a_time:
            self._database.close()

    def _rows(self, statement: str, values: list[str]) -> list[tuple[str, str]]:
        with self._one_at_a_time:
            try:
                return self._database.execute(statement, values).fetchall()
            except sqlite3.DatabaseError as error:
                raise self._broken(error) from None

    def _broken(self, error: sqlite3.DatabaseError) -> ValueError:
        if isinstance(error, sqlite3.OperationalError):
            what_to_do = "See that the folder can be written to, has room, and that no other program holds the file."
        else:
            what_to_do = (
                f"Save what can be saved (sqlite3 {self.file} .recover), or move the file away: what is asked again "
                "costs tokens again."
            )
        return ValueError(f"answer cache {self.file}: {error}. {what_to_do}")


def _written(answer: TeacherAnswer) -> str:
    return _Kept(
        score=answer.score,
        probabilities=None if answer.probabilities is None else list(answer.probabilities),
        label=answer.label,
        reasoning=None if answer.reasoning is None else answer.reasoning.line(),
        agreement=answer.agreement,
        num_chains=answer.num_chains,
        num_parsed=answer.num_parsed,
        num_attempts=answer.num_attempts,
        num_tokens=answer.num_tokens,
        problems=list(answer.problems),
    ).model_dump_json()


def _read(text: str) -> TeacherAnswer:
    try:
        kept = _Kept.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']}") from None
    return TeacherAnswer(
        score=kept.score,
        probabilities=None if kept.probabilities is None else tuple(kept.probabilities),
        label=kept.label,
        reasoning=None if kept.reasoning is None else parse(kept.reasoning),
        agreement=kept.agreement,
        num_chains=kept.num_chains,
        num_parsed=kept.num_parsed,
        num_attempts=kept.num_attempts,
        num_tokens=kept.num_tokens,
        problems=tuple(kept.problems),
    )

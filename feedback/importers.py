"""The table of supported exports; each line names a function in feedback/exports.py.

To add one: a function that takes a record (or, with `group`, all records that belong together) and gives a list of
{"messages": turns, "label": the vote as it is, None for none}, and a line in the table. Scales, checks and counts are not its business.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

from helpers.errors import KitError

from . import exports, read, tables
from .columns import NO_VOTE, Columns, value_at
from .records import Refused, shorten


class Importer(NamedTuple):
    """A tool's export. `needs`: dotted paths that a record has, by which it is recognised (`a|b`: one of them); `used`: those that are
    read, every other one is listed as unused; `replies`: the record, or the list of records that belong together -> its judged
    replies; `group`: the key by which records belong together: a line a message, or votes kept apart."""

    name: str
    needs: str
    replies: Callable
    used: str = ""
    group: str = ""


def find(records: list) -> Importer | None:
    """The importer for these records; None where they are plain rows."""
    records = [record for record in records if isinstance(record, dict)]
    return next((importer for importer in IMPORTERS for record in records
                 if all(value_at(record, path) is not None for path in importer.needs.split())), None)


def replies(importer: Importer, found) -> list:
    """The judged replies of a record (or of those that belong together), or the reason why there are none."""
    try:
        made = importer.replies(found)
    except Refused as refused:
        return [refused]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
        return [Refused("not a record", f"not as {importer.name} writes it: {type(error).__name__} {error}")]
    return made or [Refused("not a record", "votes without their reply") if importer.group else Refused(NO_VOTE, "")]


class Table:
    """A source's rows, read as often as asked; how its columns are filled is counted in a first pass."""

    def __init__(self, source, given: dict, named: dict):
        self.source = source
        self.encodings = [read.encoding_of(file) for file in source.files]
        heads = [value for file, encoding in zip(source.files, self.encodings, strict=True)
                 for _, value in itertools.islice(read.rows(file, encoding), 100)]
        self.importer = None if given else find(heads)
        if self.importer and self.importer.group:
            tables.refuse_what_does_not_fit(source.files, joined=True)
        self.used = set((self.importer.used or self.importer.needs).replace("|", " ").split() if self.importer else given.values())
        self.columns, broken = Columns(named), ""
        for _, value in self._raw():
            if isinstance(value, dict):
                self.columns.add(value, self.used, set(given.values()))
            elif not broken:
                broken = value.reason if isinstance(value, Refused) else f"{shorten(value)} is no object with columns"
        if not self.columns.names:
            raise KitError(f"there is no row that can be read in {source.origin}: {broken or 'it is empty'}",
                           "rows with columns: JSON, JSON lines, or CSV whose first line names the columns, parted by , ; tab or |",
                           "export it again as one of these")
        self.score = None
        if self.importer:
            self.columns.votes = votes = {}
            for _, value in self.rows():
                label = value.get("label") if isinstance(value, dict) else None
                for name, found in label.items() if isinstance(label, exports.Scores) else [("label", label)]:
                    self.columns.add_vote(name, found)
            self.score = exports.the_score(votes)
            self.columns.votes = {"label": votes[self.score]} if votes else {}

    def _raw(self):
        for file, name, encoding in zip(self.source.files, self.source.names, self.encodings, strict=True):
            for number, value in read.rows(file, encoding):
                yield f"{name}:{number}", value

    def rows(self):
        """(`file:row`, row or `Refused`) of all rows; an importer's record makes a row for each judged reply."""
        found = self._raw()
        if self.importer and self.importer.group:
            groups = {}
            for where, value in found:
                key = str((value_at(value, self.importer.group) if isinstance(value, dict) else None) or where)
                groups.setdefault(key, (where, []))[1].append(value)
            found = groups.values()
        for where, value in found:
            for made in replies(self.importer, value) if self.importer else [value]:
                if self.score and isinstance(made, dict) and isinstance(made.get("label"), exports.Scores):
                    made["label"] = made["label"].get(self.score)
                yield where, made


IMPORTERS = [
    # open-webui 0.6: FeedbackModel in backend/open_webui/models/feedbacks.py; edits as in Messages.svelte
    Importer("Open WebUI 0.6, feedback export", "snapshot.chat meta.message_id", exports.open_webui,
             "data.rating meta.message_id snapshot.chat.chat.history.messages snapshot.chat.chat.params.system"),
    Importer("Open WebUI 0.6, chats", "chat.history.messages", exports.open_webui_chats, "chat.history.messages chat.params.system"),
    # LibreChat 0.8: packages/data-schemas/src/schema/message.ts; client/src/hooks/Conversations/useExportConversation.ts
    Importer("LibreChat 0.8, conversation", "conversationId messages|messagesTree", exports.librechat, "messages messagesTree"),
    Importer("LibreChat 0.8, messages", "messageId conversationId sender", exports.librechat_messages,
             "messageId parentMessageId conversationId isCreatedByUser text content feedback.rating",
             "conversationId"),
    # Langfuse 3: TraceWithFullDetails and Score of its OpenAPI; traces/, observations_v2/ and scores/ of its blob storage export
    Importer("Langfuse 3, traces with scores", "timestamp output scores", exports.langfuse,
             "id input output scores observations", "trace_id|traceId|id"),
    Importer("Langfuse 3, traces and scores", "trace_id|traceId name source", exports.langfuse,
             "id input output trace_id traceId parent_observation_id parentObservationId observation_id observationId name value "
             "string_value stringValue source", "trace_id|traceId|id"),
    # LangSmith: Run and Feedback of its Python SDK 0.6 (langsmith/schemas.py)
    Importer("LangSmith 0.6, runs", "inputs outputs feedback_stats", exports.langsmith, group="run_id|id"),
    Importer("LangSmith 0.6, runs, feedback", "run_id key", exports.langsmith, "id inputs outputs run_id key score value", "run_id|id"),
    # Label Studio 1: labelstud.io/guide/task_format
    Importer("Label Studio 1, JSON", "data annotations", exports.label_studio),
    # Argilla 2: Dataset.records.to_list() and to_json()
    Importer("Argilla 2, records", "fields responses", exports.argilla),
    # lmsys/chatbot_arena_conversations, lmsys/lmsys-arena-human-preference-55k, lmarena-ai's later sets
    Importer("arena votes", "conversation_a conversation_b winner", exports.arena),
    Importer("arena votes", "response_a response_b winner_model_a", exports.arena,
             "prompt response_a response_b winner_model_a winner_model_b winner_tie"),
    Importer("arena votes", "prompt response_a response_b winner|preference", exports.arena),
    # OpenAssistant/oasst1 and oasst2, their cards
    Importer("OASST trees", "message_tree_id prompt.text", exports.oasst, "prompt"),
    Importer("OASST messages", "message_tree_id message_id text", exports.oasst_messages,
             "message_id parent_id message_tree_id text role rank", "message_tree_id"),
    # OpenAI's guide to direct preference optimisation, 2025
    Importer("OpenAI, preferences", "input.messages preferred_output non_preferred_output", exports.openai_preference,
             "input.messages input.tools preferred_output non_preferred_output"),
]

"""The former name of `input_pipeline.sets.bad_records`, for programs that import it."""

from input_pipeline.sets.bad_records import MODES, BadRecordLog, good_box, walk

Tally = BadRecordLog
__all__ = ["MODES", "BadRecordLog", "Tally", "good_box", "walk"]

"""Feature files of public code: brought into a store, and written from one.

`import_streams` and `import_texts` read folders and HDF5 files of other people's features;
`export` writes the folders that their training code reads. What files may look like is chosen by
name from `FORMATS`, what is written from `LAYOUTS`; captions are text, `CAPTION_FORMATS`.
"""

from data.interop import hdf5  # noqa: F401 (it registers itself)
from data.interop.captions import CAPTION_FORMATS, export_captions
from data.interop.export import ExportReport, export
from data.interop.form import ImportOptions
from data.interop.layouts import LAYOUTS
from data.interop.report import ImportReport, Line
from data.interop.sources import FORMATS, Source, SourceOptions, open_source
from data.interop.streams import import_streams
from data.interop.texts import import_texts

__all__ = [
    "CAPTION_FORMATS",
    "FORMATS",
    "LAYOUTS",
    "ExportReport",
    "ImportOptions",
    "ImportReport",
    "Line",
    "Source",
    "SourceOptions",
    "export",
    "export_captions",
    "import_streams",
    "import_texts",
    "open_source",
]

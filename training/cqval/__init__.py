"""C-QVal: LMR's splits of complex queries of QVHighlights val (docs/cqval.md).

"Context-Enhanced Video Moment Retrieval with Large Language Models", https://arxiv.org/abs/2405.12540,
Sec. IV-D and Table IV. The splits were never published; here they are made again from a parse.
"""

"""LLMEPET §3 as a study that can be repeated: do the layers of an LLM mend wrong similarities?"""

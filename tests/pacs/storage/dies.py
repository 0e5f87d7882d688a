"""A child that dies at its first request: `python -m tests.pacs.storage.dies`."""

import os
import sys

sys.stdin.buffer.readline()
os.abort()

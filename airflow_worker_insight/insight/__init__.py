"""Is it the worker? Tell a sick worker, host or zone from bad luck and from a bad task.

The package is pure: it takes starts and ends of tries and returns findings. It reads no clock and no database.

The method tests each worker against its peers on the same tasks with e-values of stratified counts (Turner and
Grünwald, arXiv 2302.11401; Turner, Ly and Grünwald, arXiv 2106.02693), accumulated as an e-detector (Shin, Ramdas and
Rinaldo, arXiv 2203.03532), so that the chance of a false finding stays bounded however often it is read.
"""

from __future__ import annotations

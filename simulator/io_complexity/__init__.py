"""IO complexity: the least traffic of an operator, a fused chain or a graph, the best tiling found, and their distance.

Every operator here answers two questions about a fast memory of S bytes: how many bytes no schedule can avoid moving
into and out of it (`bound`), and how many the best schedule that could be found moves (`best`, with its tiles). The
truth lies between them. `peakline.io_complexity.report.io` asks both at every level of a device's memory.
"""

//! Wire formats, checksums, segmentation and coalescing; bytes in, bytes out.

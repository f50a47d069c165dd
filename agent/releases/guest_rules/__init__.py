"""What the public guest refuses of a config, known before it boots. Pure.

Source: the public image's own reader (tinfoilsh/cvmimage, tinfoil/internal/runtimeconfig and
tinfoil/internal/config as of 0.11.0), which is strict; and what its container engine refuses. Of
newer images the names are known that their notes tell.
"""

"""The native lane: ModelInfer over HTTP/2 in C++, with one call into Python per batch.

`core` is C++ that knows no Python, `binding` makes `native` of it, a module that is there only
where `build` has built it. grpcio stays the reference: it answers whatever the lane passes on.
"""

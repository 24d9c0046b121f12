// The module `serving.lane.native`: native.pyi says what is in it.

#include <pybind11/pybind11.h>

#include "bindings.h"

PYBIND11_MODULE(native, module) {
  module.doc() = "The native lane's batcher and server; see native.pyi.";
  lane::bind_batcher(module);
  lane::bind_server(module);
}

// What each file of the binding adds to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace lane {

void bind_batcher(pybind11::module_& module);
void bind_server(pybind11::module_& module);

}  // namespace lane

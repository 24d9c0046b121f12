// Python's log, for threads of C++: what they tell it, and never what it raises.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <string>

#include "service.h"

namespace lane {

// Tells a function of Python a text.
std::function<void(const std::string&)> text_logger(pybind11::object function);

// Tells a function of Python what was raised or None, text, request id, model and version.
std::function<void(const Fault&)> fault_logger(pybind11::object function);

}  // namespace lane

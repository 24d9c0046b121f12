// What is told to Python's log, by threads that hold nothing of it.
#include "python_log.h"

#include <memory>
#include <utility>

#include "interpreter.h"
#include "python_request.h"

namespace py = pybind11;

namespace lane {
namespace {

template <typename... Arguments>
void say(const py::object& function, Arguments&&... arguments) {
  try {
    call(function, std::forward<Arguments>(arguments)...);
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("the lane's log");
  }
}

}  // namespace

std::function<void(const std::string&)> text_logger(py::object function) {
  return [function = shared_of_python<py::object>(std::move(function))](const std::string& text) {
    if (python_is_ending()) return;
    const WithPython python;
    say(*function, text);
  };
}

std::function<void(const Fault&)> fault_logger(py::object function) {
  return [function = shared_of_python<py::object>(std::move(function))](const Fault& fault) {
    if (python_is_ending()) return;
    const WithPython python;
    say(*function, cause_of(fault.cause), fault.text, fault.request_id, fault.model, fault.version);
  };
}

}  // namespace lane

// PythonBatcher: a batcher that runs a function of Python, and takes requests of Python's.
#include "python_batcher.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "predictions.h"
#include "python_executor.h"
#include "python_observer.h"

namespace py = pybind11;

namespace lane {

namespace {

// serving/predictions.py's PredictionPlan.
using Plan = std::tuple<std::string, std::string, std::string, double>;

std::shared_ptr<BatchObserver> observer_of(std::shared_ptr<BatchObserver> given, py::object observe,
                                           py::object failed) {
  if (!given) given = std::make_shared<PythonObserver>(std::move(observe), std::move(failed));
  return std::make_shared<HandingOut>(std::move(given));
}

InputBuffers all_of(const std::vector<py::dict>& buffers) {
  std::vector<InputBuffers::Set> sets;
  for (const py::dict& arrays : buffers) sets.push_back(buffers_of(arrays));
  return InputBuffers(std::move(sets));
}

std::shared_ptr<Executor> executor_of(py::object run, const FactsColumn& facts,
                                      const std::optional<Plan>& plan, InputBuffers buffers) {
  auto executor = std::make_shared<PythonExecutor>(std::move(run), facts, std::move(buffers));
  if (!plan) return executor;
  const auto& [class_output, score_output, image_input, temperature] = *plan;
  return std::make_shared<Predicting>(
      std::move(executor), PredictionPlan{class_output, score_output, image_input, temperature});
}

std::unique_ptr<PythonBatcher> make_batcher(
    py::object run, BatcherOptions options, py::object answered, py::object refused,
    std::string facts_name, py::dtype facts_dtype, std::shared_ptr<BatchObserver> observer,
    py::object observe, py::object failed,
    const std::optional<Plan>& plan, std::vector<std::string> inputs,
    const std::vector<py::dict>& buffers) {
  const FactsColumn facts{std::move(facts_name), std::move(facts_dtype)};
  return std::make_unique<PythonBatcher>(
      executor_of(std::move(run), facts, plan, all_of(buffers)), std::move(options),
      observer_of(std::move(observer), std::move(observe), std::move(failed)),
      of_python<Tell>(Tell{std::move(answered), std::move(refused), facts}),
      std::move(inputs));
}

BatcherOptions make_options(std::string name, std::int64_t max_batch_size, Seconds max_queue_delay,
                            std::size_t max_queue_size, int instance_count,
                            std::vector<std::int64_t> buckets, int priority_levels) {
  return {std::move(name), max_batch_size,     max_queue_delay, max_queue_size,
          instance_count,  std::move(buckets), priority_levels};
}

}  // namespace

PythonBatcher::PythonBatcher(std::shared_ptr<Executor> executor, BatcherOptions options,
                             std::shared_ptr<BatchObserver> observer, std::shared_ptr<Tell> tell,
                             std::vector<std::string> inputs)
    : tell_(std::move(tell)), layouts_(std::move(inputs)) {
  const WithoutPython others_run;
  batcher_ = shared_without_python<Batcher>(std::move(executor), std::move(options),
                                            std::move(observer));
}

py::object PythonBatcher::submit(const py::object& request) {
  const auto mine = std::make_shared<PythonRequest>(request, layouts_, tell_);
  const py::object claim = claim_of(request);
  claim.cast<Claim&>().queued(mine, batcher_);
  request.attr("withdraw") = claim;
  const std::optional<Refusal> refusal = batcher_->submit(mine);
  return refusal ? py::object(plain(*refusal)) : py::none();
}

bool PythonBatcher::close(Seconds timeout) {
  const WithoutPython others_run;
  return batcher_->close(timeout);
}

std::size_t PythonBatcher::pending() const {
  const WithoutPython others_run;
  return batcher_->pending();
}

void bind_batcher(py::module_& module) {
  py::class_<Memory>(module, "_Memory");
  py::class_<Claim>(module, "_Claim")
      .def("pop", &Claim::pop)
      .def("__bool__", &Claim::left)
      .def("__call__", &Claim::withdraw);
  py::class_<BatchObserver, std::shared_ptr<BatchObserver>>(module, "BatchObserver");
  py::class_<BatcherOptions>(module, "BatcherOptions")
      .def(py::init(&make_options), py::kw_only(), py::arg("name"), py::arg("max_batch_size"),
           py::arg("max_queue_delay"), py::arg("max_queue_size"), py::arg("instance_count"),
           py::arg("buckets"), py::arg("priority_levels"));
  py::class_<PythonBatcher>(module, "Batcher")
      .def(py::init(&make_batcher), py::arg("run"), py::arg("options"), py::kw_only(),
           py::arg("answered"), py::arg("refused"), py::arg("facts_name"), py::arg("facts_dtype"),
           py::arg("observer") = py::none(), py::arg("observe") = py::none(),
           py::arg("failed") = py::none(), py::arg("plan") = py::none(),
           py::arg("inputs") = std::vector<std::string>(),
           py::arg("buffers") = std::vector<py::dict>())
      .def("submit", &PythonBatcher::submit)
      .def("close", &PythonBatcher::close)
      .def_property_readonly("pending", &PythonBatcher::pending);
}

}  // namespace lane

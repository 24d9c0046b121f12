// The lane's server for Python: what it is told of the models, and how it starts and ends.

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "batcher.h"
#include "bindings.h"
#include "counters_of_python.h"
#include "interpreter.h"
#include "model_observer.h"
#include "python_batcher.h"
#include "python_log.h"
#include "server.h"
#include "service.h"

namespace py = pybind11;

namespace lane {
namespace {

using Spec = std::tuple<std::string, std::string, std::vector<std::int64_t>>;
using Settings = std::map<std::string, double>;
using Token = std::tuple<std::string, std::string, bool, double, double>;  // Grant's, in its order
using Key = std::pair<std::string, std::string>;  // name and version

std::vector<TensorSpec> specs_of(const std::vector<Spec>& specs) {
  std::vector<TensorSpec> found;
  for (const auto& [name, datatype, shape] : specs) found.push_back({name, datatype, shape});
  return found;
}

std::shared_ptr<ServedModel> served_model(std::string name, std::string version,
                                          const std::vector<Spec>& inputs,
                                          const std::vector<Spec>& outputs,
                                          std::vector<std::string> labels,
                                          const PythonBatcher& batcher,
                                          std::shared_ptr<ModelCounters> counters) {
  Signature signature{std::move(name), std::move(version), specs_of(inputs), specs_of(outputs),
                      std::move(labels)};
  return std::make_shared<ServedModel>(std::move(signature), batcher.batcher(),
                                       std::move(counters));
}

using TlsTexts = std::tuple<std::string, std::string, std::string>;  // bytes of Python, PEM

TlsOptions tls_of(const TlsTexts& texts) {
  const auto& [certificate, key, client_ca] = texts;
  return {certificate, key, client_ca};
}

Limits limits_of(const Settings& settings) {
  Limits limits;
  limits.max_message_bytes = static_cast<std::size_t>(settings.at("max_message_bytes"));
  limits.max_streams = static_cast<std::uint32_t>(settings.at("max_streams"));
  limits.keepalive_time = settings.at("keepalive_time");
  limits.keepalive_timeout = settings.at("keepalive_timeout");
  limits.max_age = settings.at("max_age");
  limits.max_age_grace = settings.at("max_age_grace");
  limits.idle_timeout = settings.at("idle_timeout");
  limits.stall_timeout = settings.at("stall_timeout");
  // Whatever the largest message is, one that is received leaves room for others.
  limits.max_buffered_bytes = std::max(limits.max_buffered_bytes, 2 * limits.max_message_bytes);
  limits.max_buffered_by_all = std::max(limits.max_buffered_by_all, 4 * limits.max_message_bytes);
  return limits;
}

// Everything of one process's lane but its models. Python's lock is let go before anything waits.
class PythonServer {
 public:
  PythonServer(std::string upstream_path, Settings settings,
               const std::optional<TlsTexts>& tls, std::optional<py::bytes> key,
               py::object refusal, py::object request_bytes, py::object in_flight,
               const py::dict& connections, py::object failed)
      : settings_(std::move(settings)), outbox_(make_outbox()) {
    options_.upstream_path = std::move(upstream_path);
    options_.limits = limits_of(settings_);
    options_.max_connections = static_cast<std::size_t>(settings_.at("max_connections"));
    if (tls) options_.tls = tls_of(*tls);
    ServiceOptions service;
    service.room = static_cast<std::size_t>(settings_.at("room"));
    service.priority_levels = static_cast<int>(settings_.at("priority_levels"));
    service.prediction_ids = key.has_value();
    service.tokens = settings_.at("tokens") != 0;
    service.log_every = static_cast<std::uint64_t>(settings_.at("log_every"));
    service.failed = fault_logger(std::move(failed));
    auto signer = key ? std::make_shared<const Signer>(std::string(*key)) : nullptr;
    service_ = std::make_shared<InferService>(
        std::move(service), as_outbox(outbox_), std::move(signer),
        service_series(std::move(refusal), std::move(request_bytes), std::move(in_flight),
                       connections));
    service_->traces_observed = settings_.at("traces_observed") != 0;
  }

  std::shared_ptr<BatchObserver> observer(std::shared_ptr<ModelCounters> counters,
                                          py::object warn) {
    return std::make_shared<ModelObserver>(std::move(counters), as_outbox(outbox_),
                                           text_logger(std::move(warn)));
  }

  void start(std::vector<int> listeners) {
    const WithoutPython others_run;
    options_.listeners = std::move(listeners);
    server_ = shared_without_python<Server>(options_, service_, outbox_);
    server_->start();
  }

  // Once it has started.
  void renew_tls(const TlsTexts& texts) {
    const WithoutPython others_run;
    server_->renew(tls_of(texts));
  }

  void set_routes(const std::map<Key, std::shared_ptr<ServedModel>>& models) {
    Routes routes(models.begin(), models.end());
    const WithoutPython others_run;
    service_->set_routes(std::move(routes));
  }

  void set_trace_rates(const std::map<std::string, std::uint64_t>& rates) {
    const WithoutPython others_run;
    service_->set_trace_rates(rates);
  }

  void set_tokens(const std::vector<Token>& tokens) {
    std::vector<Grant> grants;
    for (const auto& [name, digest, infer, rate, burst] : tokens) {
      Grant grant{name, {}, infer, rate, burst};
      if (digest.size() != grant.digest.size()) throw std::invalid_argument("no SHA-256");
      std::copy(digest.begin(), digest.end(), grant.digest.begin());
      grants.push_back(std::move(grant));
    }
    const WithoutPython others_run;
    service_->tokens.set(std::move(grants));
  }

  Seconds wait_for_rate(const std::string& name) {
    const WithoutPython others_run;
    return service_->tokens.wait(name, now());
  }

  void passed_on(int more) { service_->passed_on(more); }

  std::size_t in_flight() const { return service_->in_flight(); }

  void drain() {
    const WithoutPython others_run;
    service_->draining = true;
    if (server_) server_->drain();
  }

  bool wait_until_idle(Seconds timeout) {
    const WithoutPython others_run;
    return !server_ || server_->wait_until_idle(timeout);
  }

  void stop() {
    const WithoutPython others_run;
    if (server_) server_->stop();
  }


 private:
  Settings settings_;
  ServerOptions options_;
  std::shared_ptr<ServerOutbox> outbox_;
  std::shared_ptr<InferService> service_;
  std::shared_ptr<Server> server_;
};

}  // namespace

void bind_server(py::module_& module) {
  py::class_<ModelCounters, std::shared_ptr<ModelCounters>>(module, "ModelCounters")
      .def(py::init(&counters_of_python), py::kw_only(), py::arg("slots"), py::arg("histograms"),
           py::arg("predictions"), py::arg("refusal"), py::arg("batches"));
  py::class_<ServedModel, std::shared_ptr<ServedModel>>(module, "ServedModel")
      .def(py::init(&served_model), py::arg("name"), py::arg("version"), py::arg("inputs"),
           py::arg("outputs"), py::arg("labels"), py::arg("batcher"), py::arg("counters"));
  py::class_<PythonServer>(module, "Server")
      .def(py::init<std::string, Settings,
                    const std::optional<TlsTexts>&, std::optional<py::bytes>, py::object,
                    py::object, py::object, const py::dict&, py::object>(),
           py::kw_only(), py::arg("upstream_path"), py::arg("settings"), py::arg("tls"),
           py::arg("key"), py::arg("refusal"), py::arg("request_bytes"), py::arg("in_flight"),
           py::arg("connections"), py::arg("failed"))
      .def("observer", &PythonServer::observer, py::arg("counters"), py::arg("warn"))
      .def("start", &PythonServer::start, py::arg("listeners"))
      .def("renew_tls", &PythonServer::renew_tls, py::arg("tls"))
      .def("set_routes", &PythonServer::set_routes, py::arg("routes"))
      .def("set_trace_rates", &PythonServer::set_trace_rates, py::arg("rates"))
      .def("set_tokens", &PythonServer::set_tokens, py::arg("tokens"))
      .def("wait_for_rate", &PythonServer::wait_for_rate, py::arg("name"))
      .def("passed_on", &PythonServer::passed_on, py::arg("more"))
      .def_property_readonly("in_flight", &PythonServer::in_flight)
      .def("drain", &PythonServer::drain)
      .def("wait_until_idle", &PythonServer::wait_until_idle, py::arg("timeout"))
      .def("stop", &PythonServer::stop);
}

}  // namespace lane

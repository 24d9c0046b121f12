// Routes, checks and queues requests: the way in of serving/inference.py. call.cpp is the way out.

#include "service.h"

#include <algorithm>
#include <mutex>
#include <optional>

#include "call.h"
#include "message.h"

namespace lane {
namespace {

// Takes the first of so many, again and again, as serving/access.py has it; of 0, none.
struct Sampling {
  std::uint64_t rate = 0;
  std::uint64_t seen = 0;

  bool takes_next() { return rate > 0 && seen++ % rate == 0; }
};

// How often a request looks for another version when the one that it found is being unloaded.
constexpr int kAttempts = 5;

}  // namespace

struct InferService::State {
  // --- of any thread ---
  std::mutex routing;
  Routes routes;  // the lock's
  std::map<std::string, Sampling, std::less<>> traces;  // likewise, by model
  std::atomic<bool> tracing{false};                     // of some
  std::shared_ptr<Answering> answering = std::make_shared<Answering>();

  // --- all below is the I/O thread's ---
  std::map<std::pair<Code, Reason>, std::pair<Slots, Slots>> refusals;
  Sampling logged;
  InferRequest request;             // the one that is submitted; kept for its memory
  Routes::key_type key;             // likewise
  std::vector<std::shared_ptr<Batcher>> touched;  // to be woken

  std::shared_ptr<ServedModel> find();
  int level() const;
  bool traced();
  std::optional<Submitted> queue(const std::shared_ptr<Call>& call,
                                 const std::shared_ptr<ServedModel>& served);
  std::optional<Refusal> hand_over(const std::shared_ptr<Call>& call, Batcher& batcher);
  void touch(const std::shared_ptr<Batcher>& batcher);
  const std::pair<Slots, Slots>& slots_of(Code code, Reason reason);
};

namespace {

Submitted pass_on(Call& call) {
  Submitted submitted;
  submitted.message = std::move(call.message);
  return submitted;
}

Submitted refuse(Call& call, Refusal refusal) {
  Submitted submitted;
  submitted.what = Submitted::What::refused;
  submitted.refusal = call.refused(std::move(refusal));
  return submitted;
}

void take(Call& call, Checked checked) {
  call.layout = std::move(checked.layout);
  call.rows = checked.rows;
  call.inputs = std::move(checked.inputs);
  call.outputs = std::move(checked.outputs);
}

}  // namespace

// The version that the request is for, or null.
std::shared_ptr<ServedModel> InferService::State::find() {
  key.first.assign(request.model_name);
  key.second.assign(request.model_version);
  const std::lock_guard<std::mutex> guard(routing);
  const auto found = routes.find(key);
  return found == routes.end() ? nullptr : found->second;
}

// The batcher's: of 0 and what is beyond, the last, as Triton has a default.
int InferService::State::level() const {
  const int levels = answering->options.priority_levels;
  const bool given = 1 <= request.priority && request.priority <= levels;
  return (given ? static_cast<int>(request.priority) : levels) - 1;
}

// As serving/trace.py counts: those that will be answered.
bool InferService::State::traced() {
  if (!tracing.load()) return false;
  const std::lock_guard<std::mutex> guard(routing);
  auto found = traces.find(request.model_name);
  if (found == traces.end()) found = traces.find(std::string_view());
  return found != traces.end() && found->second.takes_next();
}

// What came of it; nothing where the version is being unloaded.
std::optional<Submitted> InferService::State::queue(const std::shared_ptr<Call>& call,
                                                    const std::shared_ptr<ServedModel>& served) {
  auto checked = served->checker.check(request);
  if (std::holds_alternative<PassOn>(checked)) return pass_on(*call);
  call->served = served;
  if (auto* refusal = std::get_if<Refusal>(&checked)) return refuse(*call, std::move(*refusal));
  if (traced()) {
    Submitted submitted = pass_on(*call);
    submitted.traced = true;
    return submitted;
  }
  take(*call, std::get<Checked>(std::move(checked)));
  auto refusal = hand_over(call, *served->batcher);
  touch(served->batcher);  // also where it was refused: others may have made room for nothing
  if (refusal && refusal->closed) return std::nullopt;
  if (refusal) return refuse(*call, std::move(*refusal));
  Submitted submitted;
  submitted.what = Submitted::What::taken;
  submitted.call = call;
  return submitted;
}

// From here on, where it is not refused, the call is the batcher's threads': they may be done with
// it before this returns.
std::optional<Refusal> InferService::State::hand_over(const std::shared_ptr<Call>& call,
                                                      Batcher& batcher) {
  answering->enter();
  auto refusal = batcher.submit(call, false);
  if (refusal) answering->leave();
  return refusal;
}

void InferService::State::touch(const std::shared_ptr<Batcher>& batcher) {
  if (std::find(touched.begin(), touched.end(), batcher) == touched.end()) {
    touched.push_back(batcher);
  }
}

const std::pair<Slots, Slots>& InferService::State::slots_of(Code code, Reason reason) {
  const auto what = std::make_pair(code, reason);
  const auto known = refusals.find(what);
  if (known != refusals.end()) return known->second;
  const auto& ask = answering->series.refusal;
  return refusals.emplace(what, ask ? ask(code, reason) : std::pair<Slots, Slots>()).first->second;
}

InferService::InferService(ServiceOptions options, std::shared_ptr<Outbox> outbox,
                           std::shared_ptr<const Signer> signer, ServiceSeries series)
    : tokens(options.tokens), state_(std::make_unique<State>()) {
  state_->logged.rate = options.log_every;
  state_->answering->options = std::move(options);
  state_->answering->outbox = std::move(outbox);
  state_->answering->signer = std::move(signer);
  state_->answering->series = std::move(series);
  // Now, on a thread that may wait for who is asked, and not when the server is overloaded.
  state_->slots_of(Code::resource_exhausted, Reason::overloaded);
  state_->slots_of(Code::unavailable, Reason::draining);
  if (!tokens.needed()) return;
  state_->slots_of(Code::unauthenticated, Reason::unauthenticated);
  state_->slots_of(Code::permission_denied, Reason::not_allowed);
  state_->slots_of(Code::resource_exhausted, Reason::rate_limited);
}

InferService::~InferService() = default;

void InferService::set_routes(Routes routes) {
  const std::lock_guard<std::mutex> guard(state_->routing);
  state_->routes.swap(routes);
}

void InferService::set_trace_rates(const std::map<std::string, std::uint64_t>& rates) {
  const std::lock_guard<std::mutex> guard(state_->routing);
  state_->traces.clear();
  bool some = false;
  for (const auto& [model, rate] : rates) {
    state_->traces[model].rate = rate;
    some = some || rate > 0;
  }
  state_->tracing = some;
}

bool InferService::logs() const { return state_->logged.rate > 0; }

bool InferService::logs_next() { return state_->logged.takes_next(); }

Submitted InferService::submit(CallId id, std::string message, Seconds arrived, Seconds deadline,
                               std::string_view request_id) {
  InferRequest& request = state_->request;
  const auto call = std::make_shared<Call>(state_->answering, id, std::move(message), arrived,
                                           request_id);
  if (!parse(call->message, request)) return pass_on(*call);
  call->request_id = request.id;
  call->priority = state_->level();
  call->deadline = request.timeout ? std::min(deadline, arrived + *request.timeout) : deadline;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const auto served = state_->find();
    if (!served) break;
    if (auto submitted = state_->queue(call, served)) return std::move(*submitted);
  }
  return pass_on(*call);  // grpcio says why there is no such version
}

void InferService::wake() {
  for (const auto& batcher : state_->touched) batcher->wake();
  state_->touched.clear();
}

void InferService::cancel(const std::shared_ptr<Call>& call) {
  if (!call->claim()) return;
  call->served->batcher->withdraw(*call);
  call->cancelled();
}

bool InferService::has_room() const {
  return inside() < state_->answering->options.room;
}

Refusal InferService::refuse_unread(Seconds retry) {
  Refusal refusal{Code::unavailable, Reason::draining, "the server is stopping"};
  if (!draining) {
    const Seconds wait = std::max(retry, state_->answering->last_wait.load());
    refusal = {Code::resource_exhausted, Reason::overloaded, "the server is overloaded", wait};
  }
  return counted(std::move(refusal));
}

Refusal InferService::counted(Refusal refusal) {
  const auto& [requests, rejected] = state_->slots_of(refusal.code, refusal.reason);
  requests.add(0, 1);
  rejected.add(0, 1);
  return refusal;
}

const ConnectionSeries& InferService::connection_series() const {
  return state_->answering->series.connections;
}

std::size_t InferService::in_flight() const { return state_->answering->in_flight.load(); }

std::size_t InferService::inside() const { return in_flight() + passed_on_.load(); }

}  // namespace lane

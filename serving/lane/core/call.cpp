// Completing a call: what _complete, _reply and _refuse of serving/inference.py do, in their order,
// with the texts of serving/status.py.

#include "call.h"

#include <openssl/rand.h>

#include <utility>

#include "message.h"

namespace lane {
namespace {

// Bytes. Names that a client chose appear in texts, and gRPC carries those in a header of 8 KiB,
// three bytes for most of one.
constexpr std::size_t kMaxDetails = 1000;
constexpr std::size_t kPrefixBytes = 5;  // of gRPC's frame

bool begins_character(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) != 0x80; }

void shorten(std::string& text) {
  if (text.size() <= kMaxDetails) return;
  std::size_t end = kMaxDetails;
  while (end > 0 && !begins_character(text[end])) --end;
  text.resize(end);
}

// As Python's uuid4().hex.
std::string random_id() {
  unsigned char bytes[16] = {};
  RAND_bytes(bytes, sizeof bytes);
  bytes[6] = static_cast<unsigned char>((bytes[6] & 0x0f) | 0x40);  // version 4
  bytes[8] = static_cast<unsigned char>((bytes[8] & 0x3f) | 0x80);  // variant of RFC 9562
  std::string text;
  for (const unsigned char byte : bytes) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

// Of a batch, whose tensors all have as many: the batcher has looked.
std::int64_t rows_of(const Outputs& outputs) {
  const bool some = !outputs.tensors.empty() && !outputs.tensors[0].shape.empty();
  return some ? outputs.tensors[0].shape[0] : 0;
}

}  // namespace

void Answering::enter() { show(in_flight.fetch_add(1) + 1); }

void Answering::leave() { show(in_flight.fetch_sub(1) - 1); }

// Whoever changes the number stores it, and again where it has changed meanwhile: of several
// threads the last one to look has stored what it is. An exchange with itself, as a load might be
// early.
void Answering::show(std::size_t now_inside) {
  for (std::size_t shown = ~now_inside; shown != now_inside; now_inside = in_flight.fetch_add(0)) {
    shown = now_inside;
    series.in_flight.set(0, static_cast<double>(shown));
  }
}

Call::Call(std::shared_ptr<Answering> answering, CallId id, std::string message_, Seconds arrived_,
           std::string_view header_id)
    : message(std::move(message_)),
      answering_(std::move(answering)),
      id_(id),
      header_id_(header_id) {
  arrived = arrived_;
}

void Call::complete(Outcome outcome) {
  answering_->outbox->push({id_, result(std::move(outcome))});
  // A version that nobody else has any more ends here, and not on the thread that moves bytes.
  served.reset();
  answering_->leave();
}

// It keeps its version until it ends itself, on the thread of a batch that it is in: the version
// may be unloaded meanwhile, and who lets go of it last waits for what runs.
void Call::cancelled() {
  refused({Code::cancelled, Reason::cancelled, "the request was cancelled"});
  answering_->leave();
}

Refusal Call::refused(Refusal refusal) {
  if (refusal.code == Code::internal) {
    report(refusal);
  } else {
    shorten(refusal.details);
  }
  refusal.cause = nullptr;  // it may hold much, and be Python's to let go
  served->counters->failed(refusal, now() - arrived, static_cast<std::int64_t>(message.size()));
  return refusal;
}

std::variant<Reply, Refusal> Call::result(Outcome outcome) {
  if (auto* refusal = std::get_if<Refusal>(&outcome)) return refused(std::move(*refusal));
  Refusal failed{Code::internal, Reason::failed, "internal error"};
  try {
    return replied(std::get<Answer>(outcome));
  } catch (const std::exception&) {  // outputs that are not what the signature says, or no memory
    failed.cause = std::current_exception();
  }
  return refused(std::move(failed));
}

void Call::check(const Answer& answer) const {
  const Outputs& all = *answer.outputs;
  const std::int64_t rows = rows_of(all);
  const bool told = all.facts.empty() || all.facts.size() == static_cast<std::size_t>(rows);
  const bool fit = fits(served->checker.signature(), outputs, all, rows);
  if (told && fit && answer.rows <= rows - answer.first) return;
  throw RunFailed("the outputs are not those of the model's signature");
}

// Counted once nothing can go wrong with the answer any more.
Reply Call::replied(const Answer& answer) {
  const Signature& signature = served->checker.signature();
  check(answer);
  Reply reply;
  reply.message = encode(signature, request_id, outputs, answer, ids(answer));
  if (reply.message.size() < kPrefixBytes) throw RunFailed("the answer is larger than a frame");
  reply.version = signature.version;
  reply.queue_seconds = answer.queue_seconds;
  reply.stages = answer.stages;
  if (!answer.outputs->facts.empty()) {
    served->counters->predicted(answer.outputs->facts.data() + answer.first, answer.rows);
  }
  served->counters->replied(static_cast<std::int64_t>(message.size()),
                            static_cast<std::int64_t>(reply.message.size() - kPrefixBytes));
  answering_->last_wait = answer.queue_seconds;
  return reply;
}

// None for a model that tells no classes, and where answers carry none.
std::optional<std::string> Call::ids(const Answer& answer) const {
  const Signature& signature = served->checker.signature();
  if (!answering_->signer || !answering_->options.prediction_ids) return std::nullopt;
  if (answer.outputs->facts.empty() || signature.labels.empty()) return std::nullopt;
  return answering_->signer->ids(signature.name, signature.version,
                                 static_cast<std::int64_t>(signature.labels.size()),
                                 answer.outputs->facts.data() + answer.first, answer.rows);
}

// Tells the log; and the caller what to look for there, who knows no id of its own.
void Call::report(Refusal& refusal) const {
  const Signature& signature = served->checker.signature();
  Fault fault{refusal.cause, {}, std::string(request_id), signature.name, signature.version};
  if (fault.request_id.empty()) fault.request_id = header_id_;
  if (fault.request_id.empty()) {
    fault.request_id = random_id();
    refusal.details += " (request " + fault.request_id + ")";
  }
  fault.text = refusal.details;
  if (answering_->options.failed) answering_->options.failed(fault);
}

}  // namespace lane

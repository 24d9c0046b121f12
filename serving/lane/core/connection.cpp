// Connection over nghttp2: which calls the lane answers, which it passes on, and what a client may
// do. See connection.h; docs of nghttp2: https://nghttp2.org/documentation/programmers-guide.html
#include "connection.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "abuse.h"
#include "h2.h"
#include "message_buffer.h"
#include "peer_metadata.h"
#include "session.h"
#include "stream.h"

namespace lane {
namespace {

constexpr Seconds never = std::numeric_limits<Seconds>::infinity();
// When a stream last went on, until the next tick says when that was.
constexpr Seconds unknown = -never;
// For a GOAWAY to reach the client, and its calls that are on their way to reach us.
constexpr Seconds drain_round_trip = 1;
// For the last GOAWAY to leave.
constexpr Seconds farewell = 1;
// A connection's own age is up to so much more or less: many that began together end one by one.
constexpr double age_jitter = 0.1;
// Frames that bring nothing: empty DATA, SETTINGS (CVE-2019-9518, -9515). PRIORITY is not looked at
// by nghttp2, as we announce that we do not use it.
constexpr double idle_frames_per_second = 100;
constexpr double idle_frames_burst = 1000;
// Messages for which all of Limits::max_buffered_by_all is there; for larger ones three quarters.
constexpr std::size_t small_message = 64 * 1024;
// Of answers that wait to be sent: whoever reads theirs has no more for long.
constexpr std::size_t small_answers = 64 * 1024;
// Until there may be memory again: the wait in a queue says nothing of it.
constexpr Seconds memory_retry = 1;
// Time limits of requests are no more exact than this: each look goes through all those received.
constexpr Seconds look_every = 0.1;
// NGHTTP2_ERR_TOO_MANY_CONTINUATIONS, which distributions patch in: some headers do not name it.
constexpr ssize_t too_many_continuations = -905;
// Frames that wait to be sent, and that no window holds back: beyond, nothing more is read.
constexpr std::size_t most_frames_waiting = 8192;

constexpr std::uint8_t alive_ping[] = {'a', 'l', 'i', 'v', 'e', '?', 0, 0};
constexpr std::uint8_t drain_ping[] = {'d', 'r', 'a', 'i', 'n', 0, 0, 0};

// In [0, 1), the same for the same seed (splitmix64).
double spread(std::uint64_t seed) {
  seed += 0x9e3779b97f4a7c15;
  seed = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9;
  seed = (seed ^ (seed >> 27)) * 0x94d049bb133111eb;
  return static_cast<double>((seed ^ (seed >> 31)) >> 11) * 0x1p-53;
}

Seconds own_age(Seconds age, std::uint64_t id, Seconds now) {
  if (age <= 0) return never;
  std::uint64_t bits;
  static_assert(sizeof bits == sizeof now);
  std::memcpy(&bits, &now, sizeof bits);
  return age * (1 - age_jitter + 2 * age_jitter * spread(id ^ bits));
}

// When something last happened; what happens between two ticks is taken to have at the second.
class Moment {
 public:
  explicit Moment(Seconds at) : at_(at) {}
  void happens() { fresh_ = true; }
  Seconds at(Seconds now) {
    if (std::exchange(fresh_, false)) at_ = now;
    return at_;
  }

 private:
  Seconds at_;
  bool fresh_ = false;
};

// When to look next for what is due: at the earliest that was noted, but not again and again.
class Look {
 public:
  void by(Seconds when) { earliest_ = std::min(earliest_, when); }
  Seconds next() const { return std::max(earliest_, not_before_); }
  // Looks; whatever is still to come is to be noted anew.
  void begins(Seconds now) {
    earliest_ = never;
    not_before_ = now + look_every;
  }

 private:
  Seconds earliest_ = never;
  Seconds not_before_ = -never;
};

bool ends_stream(const nghttp2_frame_hd& head) { return head.flags & NGHTTP2_FLAG_END_STREAM; }

Refusal unavailable(std::string details) {
  return {Code::unavailable, Reason::failed, std::move(details)};
}

}  // namespace

struct Connection::State {
  State(Connection& self, std::uint64_t id, Peer peer, const Limits& limits, InferService& service,
        Connect connect, Seconds now);
  ~State();

  // --- what nghttp2 tells; connected by `events` ---
  static SessionEvents events();
  void on_begin_headers(const nghttp2_frame& frame);
  void on_header(const nghttp2_frame& frame, std::string_view name, std::string_view value);
  void on_frame(const nghttp2_frame& frame);
  void on_data(std::int32_t id, std::string_view bytes);
  void on_sent(const nghttp2_frame& frame);
  void on_closed(std::int32_t id, std::uint32_t error);
  ssize_t on_output(Stream& stream, std::uint8_t* to, std::size_t most, std::uint32_t& flags);
  static ssize_t provide(nghttp2_session*, std::int32_t, std::uint8_t* to, std::size_t most,
                         std::uint32_t* flags, nghttp2_data_source* source, void* state);

  // --- requests ---
  void headers_ended(Stream& stream);
  void infer_begins(Stream& stream);
  void body_arrived(Stream& stream, std::string_view bytes);
  void request_ended(Stream& stream);
  void submit(Stream& stream);
  void refuse(Stream& stream, const Refusal& refusal);
  void refuse_headers(Stream& stream);
  void refuse_large(Stream& stream);
  void refuse_answer(Stream& stream, std::size_t size);
  void answer(Stream& stream, Reply reply);
  void must_leave(Stream& stream);
  void count_sent(Stream& stream, std::size_t bytes);
  bool too_much_unsent() const;

  // --- what is passed on ---
  Upstream* upstream();
  void pass_on(Stream& stream, std::string_view body, bool end, std::optional<Seconds> timeout);
  void pass_on_as_arrived(Stream& stream, bool end);
  void pass_on_body(Stream& stream, const std::string& body, bool end);
  void respond(Stream& stream, const Headers& headers, bool more);
  void resume(Stream& stream);
  void lose(Stream& stream);
  void count_passed(Stream& stream);
  void end_passed(Stream& stream);
  Stream* passed(std::int32_t id) const;

  // --- windows and memory ---
  void consume(Stream& stream, std::size_t bytes);
  void keep(Stream& stream, std::size_t bytes);
  bool memory_is_short() const;
  bool reserve(Stream& stream);
  void hold_or_open(Stream& stream, std::size_t bytes);
  void open_window(Stream& stream);
  void let_others_go();
  void stop_receiving(Stream& stream);
  void forget_body(Stream& stream);
  void free_memory(Stream& stream, std::size_t bytes);

  // --- streams ---
  Stream& begin(std::int32_t id);
  Stream* find(std::int32_t id) const;
  void release(Stream& stream);
  void leave(Stream& stream, std::uint32_t error);
  void reset_stream(Stream& stream, std::uint32_t error);

  // --- time ---
  Seconds tick(Seconds now);
  Seconds tick_shutting();
  void drop(Dropped why);
  Seconds tick_handshake();
  Seconds tick_keepalive();
  Seconds tick_age();
  Seconds tick_drain();
  Seconds tick_idle();
  Seconds tick_requests();
  bool waits_for_us(const Stream& stream) const;
  Seconds tick_deadlines();
  Seconds tick_answers();
  Seconds tick_socket();
  void drain();
  void goaway_sent();
  void say_goodbye();
  void shut(std::uint32_t error, std::string_view text);
  void control_frame(const nghttp2_frame& frame);
  void reset_sent(std::uint32_t error);
  bool finished() const;

  Connection& self;
  const std::uint64_t id;
  const Peer peer;
  const Limits limits;
  InferService& service;
  const Connect connect;
  Seconds now;  // as it was last told

  // Streams by place; those free are reused. Before the session, which calls nothing as it ends.
  std::vector<std::unique_ptr<Stream>> streams;
  std::vector<std::size_t> free_places;
  std::size_t open = 0;
  std::size_t buffered = 0;
  std::size_t reserved = 0;  // of all that the service has reserved
  std::size_t unsent = 0;  // of answers: a client that takes none is not given ever more
  StreamList receiving;  // ModelInfer requests of which not all has come
  StreamList answering;  // ModelInfer answers of which something is here that has not left
  AnswerTrailers trailers;
  KnownToken token;
  // Beyond half of `max_buffered_bytes` one stream at a time goes on, until it is whole.
  std::deque<Stream*> held;
  const Stream* favoured = nullptr;

  std::unique_ptr<Upstream> up;
  bool up_lost = false;

  TokenBucket resets;
  TokenBucket idle_frames;
  PingStrikes pings;

  const Seconds began;
  const Seconds age;
  Seconds heard;                          // when bytes last came
  std::optional<Seconds> asked;           // whether the peer lives
  Look deadlines;                         // of those receiving, or before
  Look stalls;                            // likewise
  Look unread;                            // likewise, of those answering
  Moment idle;                            // when the last stream ended
  bool wrote = false;                     // something was taken to be sent since the last tick
  std::optional<Seconds> unsent_since;    // something waits, and nothing was taken
  bool handshaken = false;
  enum class Drain { no, announced, done } draining = Drain::no;
  Moment announced;
  std::optional<Seconds> grace_ends;
  bool shutting = false;  // the last GOAWAY is on its way
  Moment shut_at;
  bool gone = false;      // it has left
  bool broken = false;

  Session session;
};

// --- setting up ---------------------------------------------------------------------------------

Connection::State::State(Connection& self, std::uint64_t id, Peer peer, const Limits& limits,
                         InferService& service, Connect connect, Seconds now)
    : self(self),
      id(id),
      peer(std::move(peer)),
      limits(limits),
      service(service),
      connect(std::move(connect)),
      now(now),
      resets(limits.resets_per_second, limits.resets_burst, now),
      idle_frames(idle_frames_per_second, idle_frames_burst, now),
      pings(limits.min_ping_interval, limits.max_ping_strikes),
      began(now),
      age(own_age(limits.max_age, id, now)),
      heard(now),
      idle(now),
      announced(now),
      shut_at(now),
      session(make_session(limits, events(), this)) {}

Connection::State::~State() {
  for (const auto& stream : streams) {
    if (stream->id != 0) leave(*stream, NGHTTP2_CANCEL);
  }
  service.reserved -= reserved;
  service.unsent -= unsent;
  up.reset();  // before what it may tell
}

namespace {

std::string_view text(const std::uint8_t* bytes, std::size_t size) {
  return {reinterpret_cast<const char*>(bytes), size};
}

}  // namespace

SessionEvents Connection::State::events() {
  SessionEvents events{};
  events.begin_headers = [](nghttp2_session*, const nghttp2_frame* frame, void* state) {
    return guarded([&] { static_cast<State*>(state)->on_begin_headers(*frame); });
  };
  events.header = [](nghttp2_session*, const nghttp2_frame* frame, const std::uint8_t* name,
                     std::size_t name_size, const std::uint8_t* value, std::size_t value_size,
                     std::uint8_t, void* state) {
    return guarded([&] {
      static_cast<State*>(state)->on_header(*frame, text(name, name_size), text(value, value_size));
    });
  };
  events.frame = [](nghttp2_session*, const nghttp2_frame* frame, void* state) {
    return guarded([&] { static_cast<State*>(state)->on_frame(*frame); });
  };
  events.data = [](nghttp2_session*, std::uint8_t, std::int32_t id, const std::uint8_t* bytes,
                   std::size_t size, void* state) {
    return guarded([&] { static_cast<State*>(state)->on_data(id, text(bytes, size)); });
  };
  events.sent = [](nghttp2_session*, const nghttp2_frame* frame, void* state) {
    return guarded([&] { static_cast<State*>(state)->on_sent(*frame); });
  };
  events.closed = [](nghttp2_session*, std::int32_t id, std::uint32_t error, void* state) {
    return guarded([&] { static_cast<State*>(state)->on_closed(id, error); });
  };
  return events;
}

// --- streams ------------------------------------------------------------------------------------

Stream& Connection::State::begin(std::int32_t id) {
  if (free_places.empty()) {
    streams.push_back(std::make_unique<Stream>(streams.size()));
    free_places.push_back(streams.size() - 1);
  }
  Stream& stream = *streams[free_places.back()];
  free_places.pop_back();
  stream.begin(id, now);
  ++open;
  return stream;
}

Stream* Connection::State::find(std::int32_t id) const {
  return static_cast<Stream*>(nghttp2_session_get_stream_user_data(session.get(), id));
}

// Tells whoever works for the stream that nobody waits any more.
void Connection::State::leave(Stream& stream, std::uint32_t error) {
  const Stream::Role role = std::exchange(stream.role, Stream::Role::answered);
  // There is none where memory ran out as it was submitted.
  if (const auto call = std::exchange(stream.call, nullptr)) service.cancel(call);
  const bool over = stream.upstream_done && stream.request_ended && stream.out.size() == 0;
  if (role == Stream::Role::passed && !over) up->reset(stream.id, error);
  end_passed(stream);
}

void Connection::State::release(Stream& stream) {
  forget_body(stream);
  count_sent(stream, stream.unsent);
  // The windows of bytes that the upstream still has: the stream's own is gone with it.
  if (stream.unconsumed > 0) nghttp2_session_consume_connection(session.get(), stream.unconsumed);
  StreamList::remove(stream);
  stream.reset();
  free_places.push_back(stream.place);
  if (--open == 0) idle.happens();
}

void Connection::State::reset_stream(Stream& stream, std::uint32_t error) {
  StreamList::remove(stream);
  if (stream.role == Stream::Role::body) {
    stream.role = Stream::Role::answered;
    forget_body(stream);
  }
  nghttp2_submit_rst_stream(session.get(), NGHTTP2_FLAG_NONE, stream.id, error);
}

void Connection::State::on_closed(std::int32_t id, std::uint32_t error) {
  Stream* stream = find(id);
  if (!stream) return;
  if (error == NGHTTP2_NO_ERROR) error = NGHTTP2_CANCEL;
  leave(*stream, error);
  release(*stream);
}

// --- requests -----------------------------------------------------------------------------------

void Connection::State::on_begin_headers(const nghttp2_frame& frame) {
  if (shutting) return;
  if (frame.headers.cat != NGHTTP2_HCAT_REQUEST) return;  // a client's trailers say nothing to gRPC
  Stream& stream = begin(frame.hd.stream_id);
  nghttp2_session_set_stream_user_data(session.get(), frame.hd.stream_id, &stream);
}

void Connection::State::on_header(const nghttp2_frame& frame, std::string_view name,
                                  std::string_view value) {
  if (frame.hd.type != NGHTTP2_HEADERS || frame.headers.cat != NGHTTP2_HCAT_REQUEST) return;
  Stream* stream = find(frame.hd.stream_id);
  if (stream) stream->headers.add(name, value, limits.max_header_bytes);
}

void Connection::State::on_frame(const nghttp2_frame& frame) {
  if (shutting) return;
  const bool request = frame.hd.type == NGHTTP2_HEADERS || frame.hd.type == NGHTTP2_DATA;
  if (!request) return control_frame(frame);
  const bool empty = frame.hd.type == NGHTTP2_DATA && frame.hd.length <= frame.data.padlen;
  if (empty && !ends_stream(frame.hd)) {
    if (!idle_frames.take(now)) return shut(NGHTTP2_ENHANCE_YOUR_CALM, "empty_frames");
  }
  Stream* stream = find(frame.hd.stream_id);
  if (!stream) return;
  if (stream->role == Stream::Role::headers) headers_ended(*stream);
  if (ends_stream(frame.hd)) return request_ended(*stream);
  // As grpcio, which reads one message and does not wait to hear that it was the last.
  if (stream->role == Stream::Role::body && stream->body.whole()) submit(*stream);
}

void Connection::State::headers_ended(Stream& stream) {
  if (stream.headers.bytes() > limits.max_header_bytes) return refuse_headers(stream);
  stream.infer = stream.headers.infer();
  if (stream.infer) return infer_begins(stream);
  // Whether the request ends here is known, but told with the rest of it: see request_ended.
  pass_on(stream, {}, false, std::nullopt);
}

void Connection::State::infer_begins(Stream& stream) {
  const bool logged = service.logs_next();
  const bool observed = logged || (service.traces_observed && stream.headers.sampled());
  if (auto refusal = service.tokens.refuse(stream.headers.authorization(), token, now)) {
    // Who observes refuses it itself, but for a rate, of which only one is to take.
    const bool rated = refusal->reason == Reason::rate_limited;
    if (!observed || rated) return refuse(stream, service.counted(std::move(*refusal)));
  }
  // Who observes is told of what has no room, too, and so has to refuse it.
  const bool room = service.has_room() && !too_much_unsent();
  if (!observed && !room) return refuse(stream, service.refuse_unread());
  if (service.logs()) stream.headers.choose(logged ? chosen_for_log : chosen_for_nothing);
  stream.progress = now;
  receiving.append(stream);
  stalls.by(now + limits.stall_timeout);
  if (observed || !stream.headers.plain()) {
    count_passed(stream);
    return pass_on(stream, {}, false, std::nullopt);
  }
  stream.role = Stream::Role::body;
  if (const auto timeout = stream.headers.timeout()) {
    stream.deadline = now + *timeout;
    deadlines.by(stream.deadline);
  }
}

void Connection::State::on_data(std::int32_t id, std::string_view bytes) {
  Stream* stream = find(id);
  if (!stream) {
    nghttp2_session_consume_connection(session.get(), bytes.size());
    return;
  }
  if (stream->list == &receiving) {  // so many bytes are good for so many seconds
    const Seconds gained = static_cast<double>(bytes.size()) / limits.least_rate;
    stream->progress = std::min(now, stream->progress + gained);
  }
  if (stream->role == Stream::Role::body) return body_arrived(*stream, bytes);
  if (stream->role == Stream::Role::passed && !stream->upstream_done) {
    stream->unconsumed += bytes.size();
    return up->data(id, bytes, false);
  }
  consume(*stream, bytes.size());  // nobody wants it any more
}

void Connection::State::body_arrived(Stream& stream, std::string_view bytes) {
  keep(stream, bytes.size());
  const auto arrived = stream.body.add(bytes, limits.max_message_bytes);
  const bool part = arrived == MessageBuffer::Arrived::part;
  part ? hold_or_open(stream, bytes.size()) : consume(stream, bytes.size());
  if (arrived == MessageBuffer::Arrived::too_large) return refuse_large(stream);
  if (arrived == MessageBuffer::Arrived::other) return pass_on_as_arrived(stream, false);
  const bool fits = buffered <= limits.max_buffered_bytes && (!part || reserve(stream));
  if (!fits) refuse(stream, service.refuse_unread(memory_retry));
}

void Connection::State::request_ended(Stream& stream) {
  stream.request_ended = true;
  if (stream.list == &receiving) StreamList::remove(stream);
  if (stream.role == Stream::Role::body) return submit(stream);
  if (stream.role == Stream::Role::passed && !stream.upstream_done) up->data(stream.id, {}, true);
}

void Connection::State::submit(Stream& stream) {
  StreamList::remove(stream);
  if (!stream.body.whole()) {
    return pass_on_as_arrived(stream, true);  // no message, or not all of one
  }
  std::string message = stream.body.take_message();
  stream.role = Stream::Role::taken;
  forget_body(stream);
  Submitted submitted = service.submit({id, stream.id}, std::move(message), stream.arrived,
                                       stream.deadline, stream.headers.request_id());
  switch (submitted.what) {
    case Submitted::What::taken:
      stream.call = std::move(submitted.call);
      return;
    case Submitted::What::refused:
      return refuse(stream, submitted.refusal);
    case Submitted::What::pass_on:
      break;
  }
  if (submitted.traced) stream.headers.choose(chosen_for_trace);
  std::string body = frame_prefix(submitted.message.size()) + submitted.message;
  keep(stream, body.size());
  pass_on_body(stream, body, stream.request_ended);
}

// The metrics do not count what is refused before it was received: too large, or not all of it in
// time. grpcio refuses such a call before Python hears of it, and is not to be told from the lane.
void Connection::State::refuse_headers(Stream& stream) {
  // As gRPC's C core puts it; it goes on with the size of each.
  refuse(stream, {Code::resource_exhausted, Reason::invalid_input,
                  "received metadata size exceeds hard limit (" +
                      std::to_string(stream.headers.bytes()) + " vs. " +
                      std::to_string(limits.max_header_bytes) + ")"});
}

void Connection::State::refuse_large(Stream& stream) {
  refuse(stream, {Code::resource_exhausted, Reason::invalid_input,
                  "SERVER: Received message larger than max (" +
                      std::to_string(stream.body.announced()) + " vs. " +
                      std::to_string(limits.max_message_bytes) + ")"});
}

// --- answers ------------------------------------------------------------------------------------

void Connection::State::refuse(Stream& stream, const Refusal& refusal) {
  stream.role = Stream::Role::answered;
  forget_body(stream);
  StreamList::remove(stream);
  stream.out.trailers = std::make_shared<Headers>(refusal_trailers(refusal));
  std::vector<nghttp2_nv> all{lasting(":status", "200"),
                              lasting("content-type", "application/grpc")};
  for (const Header& each : *stream.out.trailers) all.push_back(lasting(each.name, each.value));
  nghttp2_submit_response(session.get(), stream.id, all.data(), all.size(), nullptr);
}

// As gRPC's C core puts it. The metrics have counted an answer by then, as they have over grpcio.
void Connection::State::refuse_answer(Stream& stream, std::size_t size) {
  refuse(stream, {Code::resource_exhausted, Reason::failed,
                  "SERVER: Sent message larger than max (" + std::to_string(size) + " vs. " +
                      std::to_string(limits.max_message_bytes) + ")"});
}

void Connection::State::answer(Stream& stream, Reply reply) {
  stream.call.reset();
  const std::size_t size = reply.message.size() - frame_prefix(0).size();
  if (size > limits.max_message_bytes) return refuse_answer(stream, size);
  stream.role = Stream::Role::answered;
  stream.out.trailers = trailers.of(reply.stages, reply.queue_seconds, reply.version);
  stream.out.bytes = std::move(reply.message);
  stream.out.whole = true;
  stream.unsent = stream.out.bytes.size();
  unsent += stream.unsent;
  service.unsent += stream.unsent;
  const nghttp2_nv head[] = {lasting(":status", "200"), lasting("content-type", "application/grpc"),
                             lasting("grpc-accept-encoding", "identity, deflate, gzip")};
  const nghttp2_data_provider provider{{.ptr = &stream}, provide};
  nghttp2_submit_response(session.get(), stream.id, head, std::size(head), &provider);
  must_leave(stream);
}

// By and by, from the next tick on.
void Connection::State::must_leave(Stream& stream) {
  stream.progress = unknown;
  answering.append(stream);
}

// Of what is passed on, the upstream's windows hold the rest back.
void Connection::State::count_sent(Stream& stream, std::size_t bytes) {
  bytes = std::min(bytes, stream.unsent);
  stream.unsent -= bytes;
  unsent -= bytes;
  service.unsent -= bytes;
}

// Answers that are not read. Those who leave more than a little of them are refused first, that
// others find room.
bool Connection::State::too_much_unsent() const {
  if (unsent > limits.max_buffered_bytes) return true;
  return service.unsent > limits.max_buffered_by_all / (unsent > small_answers ? 2 : 1);
}

ssize_t Connection::State::provide(nghttp2_session*, std::int32_t, std::uint8_t* to,
                                   std::size_t most, std::uint32_t* flags,
                                   nghttp2_data_source* source, void* state) {
  ssize_t count = 0;
  const int failed = guarded([&] {
    Stream& stream = *static_cast<Stream*>(source->ptr);
    count = static_cast<State*>(state)->on_output(stream, to, most, *flags);
  });
  return failed ? failed : count;
}

ssize_t Connection::State::on_output(Stream& stream, std::uint8_t* to, std::size_t most,
                                     std::uint32_t& flags) {
  const std::size_t count = stream.out.take(to, most);
  count_sent(stream, count);
  // So many bytes are good for so many seconds; those beyond now are cut off by the tick.
  const Seconds gained = static_cast<double>(count) / limits.least_rate;
  if (stream.list == &answering) stream.progress += gained;
  if (count > 0 && stream.role == Stream::Role::passed && !up_lost) up->taken(stream.id, count);
  if (stream.out.size() > 0) return static_cast<ssize_t>(count);
  if (!stream.out.whole) {
    if (stream.list == &answering) StreamList::remove(stream);  // the upstream is to go on
    if (count == 0) return NGHTTP2_ERR_DEFERRED;
    return static_cast<ssize_t>(count);
  }
  flags |= NGHTTP2_DATA_FLAG_EOF;
  if (!stream.out.trailers || stream.out.trailers->empty()) return static_cast<ssize_t>(count);
  flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
  const std::vector<nghttp2_nv> last = lasting(*stream.out.trailers);
  nghttp2_submit_trailer(session.get(), stream.id, last.data(), last.size());
  return static_cast<ssize_t>(count);
}

void Connection::State::on_sent(const nghttp2_frame& frame) {
  const std::uint8_t type = frame.hd.type;
  if (type == NGHTTP2_GOAWAY) return goaway_sent();
  if (type == NGHTTP2_RST_STREAM) return reset_sent(frame.rst_stream.error_code);
  if (type != NGHTTP2_HEADERS && type != NGHTTP2_DATA) return;
  pings.answered();
  if (!ends_stream(frame.hd)) return;
  Stream* stream = find(frame.hd.stream_id);
  if (!stream) return;
  if (stream->list == &answering) StreamList::remove(*stream);
  // All is said: the client need not send the rest (RFC 9113 8.1).
  if (!stream->request_ended) reset_stream(*stream, NGHTTP2_NO_ERROR);
}

// --- what is passed on --------------------------------------------------------------------------

Upstream* Connection::State::upstream() {
  if (!up || up_lost) {
    up_lost = false;
    up = connect(self);
  }
  return up.get();
}

void Connection::State::pass_on(Stream& stream, std::string_view body, bool end,
                                std::optional<Seconds> timeout) {
  if (!upstream()) return refuse(stream, unavailable("Failed to connect to the server"));
  stream.role = Stream::Role::passed;
  up->open(stream.id, stream.headers.passed_on(peer, timeout), end && body.empty());
  stream.headers.clear();  // nobody asks for them again, and the call may last for days
  // It may have failed at once, and then nobody is there to be told.
  const bool goes_on = stream.role == Stream::Role::passed && !stream.upstream_done && !up_lost;
  if (!body.empty() && goes_on) up->data(stream.id, body, end);
}

// A body of which part came before it was clear that the lane does not take it.
void Connection::State::pass_on_as_arrived(Stream& stream, bool end) {
  const std::string body = stream.body.take_all();
  stop_receiving(stream);
  if (stream.withheld > 0) open_window(stream);
  pass_on_body(stream, body, end);
  let_others_go();
}

// The body takes memory as before until the upstream has it; then, windows are not opened twice.
void Connection::State::pass_on_body(Stream& stream, const std::string& body, bool end) {
  stream.consumed = stream.buffered;
  count_passed(stream);
  std::optional<Seconds> left;
  if (stream.deadline < never) left = stream.deadline - now;
  pass_on(stream, body, end, left);
}

void Connection::State::count_passed(Stream& stream) {
  stream.counted = true;
  service.passed_on(1);
}

// It has its answer, or needs none: others have its room, however long the client takes to read.
void Connection::State::end_passed(Stream& stream) {
  stream.upstream_done = true;
  if (std::exchange(stream.counted, false)) service.passed_on(-1);
}

void Connection::State::respond(Stream& stream, const Headers& headers, bool more) {
  stream.response_begun = true;
  std::vector<nghttp2_nv> all = lasting(headers);
  for (nghttp2_nv& each : all) each.flags = NGHTTP2_NV_FLAG_NONE;  // copied: they do not last
  const nghttp2_data_provider provider{{.ptr = &stream}, provide};
  nghttp2_submit_response(session.get(), stream.id, all.data(), all.size(),
                          more ? &provider : nullptr);
}

// There is more to send of a response that has begun. A ModelInfer's has to leave, as an answer of
// the lane's own; a stream's may wait for as long as its client likes.
void Connection::State::resume(Stream& stream) {
  const bool waits = stream.upstream_done || (stream.request_ended && stream.out.size() > 0);
  if (stream.infer && waits && stream.list != &answering) must_leave(stream);
  nghttp2_session_resume_data(session.get(), stream.id);
}

Stream* Connection::State::passed(std::int32_t id) const {
  Stream* stream = find(id);
  const bool there = stream && stream->role == Stream::Role::passed && !stream->upstream_done;
  return there ? stream : nullptr;
}

// The upstream's connection is gone.
void Connection::State::lose(Stream& stream) {
  const Refusal refusal = unavailable("Socket closed");
  end_passed(stream);
  if (!stream.response_begun) return refuse(stream, refusal);
  stream.role = Stream::Role::answered;
  stream.out.trailers = std::make_shared<Headers>(refusal_trailers(refusal));
  stream.out.whole = true;
  resume(stream);
}

// --- windows and memory -------------------------------------------------------------------------

void Connection::State::consume(Stream& stream, std::size_t bytes) {
  nghttp2_session_consume(session.get(), stream.id, bytes);
}

void Connection::State::keep(Stream& stream, std::size_t bytes) {
  stream.buffered += bytes;
  buffered += bytes;
}

bool Connection::State::memory_is_short() const { return buffered > limits.max_buffered_bytes / 2; }

// Of a body that does not come at once, as soon as its length is known, all of it: what has begun
// then never waits for other connections. False where no memory is left for it.
bool Connection::State::reserve(Stream& stream) {
  if (stream.reserved > 0) return true;
  const std::size_t size = stream.body.announced();
  const std::size_t all = limits.max_buffered_by_all;
  if (service.reserved + size > (size <= small_message ? all : all / 4 * 3)) return false;
  // A claim costs its client five bytes: nobody has more of it than is left to all others.
  if (reserved + size > all - service.reserved) return false;
  stream.reserved = size;
  reserved += size;
  service.reserved += size;
  return true;
}

// Bytes of a body that is not whole: the connection's window opens, so that others go on; the
// stream's own unless memory is short, when one stream at a time goes on until it is whole.
void Connection::State::hold_or_open(Stream& stream, std::size_t bytes) {
  if (!memory_is_short()) return consume(stream, bytes);
  if (!favoured) favoured = &stream;
  if (favoured == &stream) return consume(stream, bytes);
  nghttp2_session_consume_connection(session.get(), bytes);
  if (stream.withheld == 0) held.push_back(&stream);
  stream.withheld += bytes;
}

void Connection::State::open_window(Stream& stream) {
  nghttp2_session_consume_stream(session.get(), stream.id, std::exchange(stream.withheld, 0));
  stream.progress = now;  // it was ours to go on
}

// Those that were held back, as far as there is room; or the next, when it is its turn.
void Connection::State::let_others_go() {
  while (!held.empty() && (!favoured || !memory_is_short())) {
    Stream& next = *held.front();
    held.pop_front();
    if (memory_is_short()) favoured = &next;
    open_window(next);
  }
}

// No more of the body comes, or it is not for the lane.
void Connection::State::stop_receiving(Stream& stream) {
  reserved -= stream.reserved;
  service.reserved -= std::exchange(stream.reserved, 0);
  if (favoured == &stream) favoured = nullptr;
  if (stream.withheld == 0) return;
  const auto place = std::find(held.begin(), held.end(), &stream);
  if (place != held.end()) held.erase(place);
}

// The body is not kept here any more: there is room for others.
void Connection::State::forget_body(Stream& stream) {
  stream.body.clear();
  stop_receiving(stream);
  free_memory(stream, stream.buffered);
}

void Connection::State::free_memory(Stream& stream, std::size_t bytes) {
  buffered -= bytes;
  stream.buffered -= bytes;
  let_others_go();
}

// --- control frames -----------------------------------------------------------------------------

void Connection::State::control_frame(const nghttp2_frame& frame) {
  const bool ack = frame.hd.flags & NGHTTP2_FLAG_ACK;
  switch (frame.hd.type) {
    case NGHTTP2_PING:
      if (!ack && !pings.ping(now)) return shut(NGHTTP2_ENHANCE_YOUR_CALM, "too_many_pings");
      if (ack && std::equal(std::begin(drain_ping), std::end(drain_ping), frame.ping.opaque_data)) {
        say_goodbye();
      }
      return;
    case NGHTTP2_RST_STREAM:
      if (!resets.take(now)) shut(NGHTTP2_ENHANCE_YOUR_CALM, "too_many_resets");
      return;
    case NGHTTP2_SETTINGS:
      handshaken = true;
      if (!ack && !idle_frames.take(now)) shut(NGHTTP2_ENHANCE_YOUR_CALM, "empty_frames");
      return;
    default:
      return;
  }
}

// Streams that a client has us reset by what it sends are as good as those it resets itself
// (CVE-2025-8671).
void Connection::State::reset_sent(std::uint32_t error) {
  const bool ours = error == NGHTTP2_NO_ERROR || error == NGHTTP2_CANCEL ||
                    error == NGHTTP2_REFUSED_STREAM || error == NGHTTP2_INTERNAL_ERROR;
  if (!ours && !resets.take(now)) shut(NGHTTP2_ENHANCE_YOUR_CALM, "too_many_resets");
}

void Connection::State::drain() {
  if (draining != Drain::no || shutting) return;
  draining = Drain::announced;
  announced.happens();
  nghttp2_submit_shutdown_notice(session.get());
}

// The ping that follows the first GOAWAY: whoever answers it has read that. It would overtake it if
// both waited to be sent.
void Connection::State::goaway_sent() {
  if (shutting) gone = true;
  if (draining == Drain::announced) {
    nghttp2_submit_ping(session.get(), NGHTTP2_FLAG_NONE, drain_ping);
  }
}

// Calls that began until now are the last.
void Connection::State::say_goodbye() {
  if (draining != Drain::announced) return;
  draining = Drain::done;
  const std::int32_t last = nghttp2_session_get_last_proc_stream_id(session.get());
  nghttp2_submit_goaway(session.get(), NGHTTP2_FLAG_NONE, last, NGHTTP2_NO_ERROR, nullptr, 0);
}

// No more of this client, and its calls are given up.
void Connection::State::shut(std::uint32_t error, std::string_view why) {
  if (std::exchange(shutting, true)) return;
  if (error == NGHTTP2_ENHANCE_YOUR_CALM) service.connection_series().dropped(Dropped::abuse);
  shut_at.happens();
  const std::int32_t last = nghttp2_session_get_last_proc_stream_id(session.get());
  nghttp2_submit_goaway(session.get(), NGHTTP2_FLAG_NONE, last, error,
                        reinterpret_cast<const std::uint8_t*>(why.data()), why.size());
}

// --- time ---------------------------------------------------------------------------------------

Seconds Connection::State::tick(Seconds time) {
  now = time;
  if (finished()) return never;
  if (shutting) return tick_shutting();
  Seconds next = never;
  for (const auto due : {&State::tick_handshake, &State::tick_keepalive, &State::tick_age,
                         &State::tick_drain, &State::tick_idle, &State::tick_requests,
                         &State::tick_deadlines, &State::tick_answers, &State::tick_socket}) {
    next = std::min(next, (this->*due)());
  }
  return shutting || broken ? now : next;
}

Seconds Connection::State::tick_shutting() {
  const Seconds ends = shut_at.at(now) + farewell;
  if (now >= ends) broken = true;
  return ends;
}

// No word of it would arrive.
void Connection::State::drop(Dropped why) {
  if (!std::exchange(broken, true)) service.connection_series().dropped(why);
}

Seconds Connection::State::tick_handshake() {
  if (handshaken) return never;
  const Seconds ends = began + limits.handshake_timeout;
  if (now >= ends) drop(Dropped::handshake);
  return ends;
}

Seconds Connection::State::tick_keepalive() {
  if (limits.keepalive_time <= 0) return never;
  if (asked) {
    if (now >= *asked + limits.keepalive_timeout) drop(Dropped::keepalive);
    return *asked + limits.keepalive_timeout;
  }
  if (now < heard + limits.keepalive_time) return heard + limits.keepalive_time;
  asked = now;
  nghttp2_submit_ping(session.get(), NGHTTP2_FLAG_NONE, alive_ping);
  return now + limits.keepalive_timeout;
}

Seconds Connection::State::tick_age() {
  if (age == never) return never;
  if (now < began + age) return began + age;
  drain();
  if (!grace_ends) grace_ends = now + limits.max_age_grace;
  if (now >= *grace_ends) shut(NGHTTP2_NO_ERROR, "max_age");
  return *grace_ends;
}

Seconds Connection::State::tick_drain() {
  if (draining != Drain::announced) return never;
  const Seconds ends = announced.at(now) + drain_round_trip;
  if (now >= ends) say_goodbye();
  return ends;
}

Seconds Connection::State::tick_idle() {
  const Seconds since = idle.at(now);
  if (open > 0 || limits.idle_timeout <= 0 || draining != Drain::no) return never;
  if (now >= since + limits.idle_timeout) drain();
  return since + limits.idle_timeout;
}

bool Connection::State::waits_for_us(const Stream& stream) const {
  return nghttp2_session_get_stream_local_window_size(session.get(), stream.id) <= 0 ||
         nghttp2_session_get_local_window_size(session.get()) <= 0;
}

// Requests that do not go on, or too slowly, although their windows are open. What was noted may be
// of one that did.
Seconds Connection::State::tick_requests() {
  if (now < stalls.next()) return stalls.next();
  stalls.begins(now);
  for (Stream* stream = receiving.front(); stream;) {
    Stream* following = stream->after;
    if (waits_for_us(*stream)) stream->progress = now;
    const Seconds ends = stream->progress + limits.stall_timeout;
    if (now < ends) {
      stalls.by(ends);
    } else {
      service.connection_series().stalled.add(0, 1);
      reset_stream(*stream, NGHTTP2_CANCEL);
    }
    stream = following;
  }
  return stalls.next();
}

// Requests of which not all came in time. What was noted may be of one that did.
Seconds Connection::State::tick_deadlines() {
  if (now < deadlines.next()) return deadlines.next();
  deadlines.begins(now);
  for (Stream* stream = receiving.front(); stream;) {
    Stream* following = stream->after;
    if (stream->deadline <= now && stream->role == Stream::Role::body) {
      refuse(*stream, {Code::deadline_exceeded, Reason::deadline, "Deadline Exceeded"});
    } else if (stream->role == Stream::Role::body) {
      deadlines.by(stream->deadline);
    }
    stream = following;
  }
  return deadlines.next();
}

// Answers that the client's window, or its socket, does not let go, or too slowly. The earliest
// time noted may be of one that has left.
Seconds Connection::State::tick_answers() {
  for (Stream* stream = answering.back(); stream && stream->progress == unknown;) {
    stream->progress = now;
    unread.by(now + limits.stall_timeout);
    stream = stream->before;
  }
  if (now < unread.next()) return unread.next();
  unread.begins(now);
  for (Stream* stream = answering.front(); stream; stream = stream->after) {
    stream->progress = std::min(now, stream->progress);
    if (now >= stream->progress + limits.stall_timeout) drop(Dropped::stalled);
    unread.by(stream->progress + limits.stall_timeout);
  }
  return unread.next();
}

// Whatever there is to send, when nobody asks for it: the socket takes nothing.
Seconds Connection::State::tick_socket() {
  const bool sent = std::exchange(wrote, false);
  if (!nghttp2_session_want_write(session.get())) {
    unsent_since.reset();
    return never;
  }
  if (sent || !unsent_since) unsent_since = now;
  if (now >= *unsent_since + limits.stall_timeout) drop(Dropped::stalled);
  return *unsent_since + limits.stall_timeout;
}

bool Connection::State::finished() const {
  if (broken || gone) return true;
  return !nghttp2_session_want_read(session.get()) && !nghttp2_session_want_write(session.get());
}

// --- Connection ---------------------------------------------------------------------------------

Connection::Connection(std::uint64_t id, Peer peer, const Limits& limits, InferService& service,
                       Connect connect, Seconds now)
    : state_(std::make_unique<State>(*this, id, std::move(peer), limits, service,
                                     std::move(connect), now)) {}

Connection::~Connection() = default;

bool Connection::receive(const std::uint8_t* data, std::size_t size, Seconds now) {
  State& state = *state_;
  state.now = state.heard = now;
  state.asked.reset();
  if (state.shutting || state.broken) return false;
  const ssize_t taken = nghttp2_session_mem_recv(state.session.get(), data, size);
  const bool flooded = taken == NGHTTP2_ERR_FLOODED || taken == too_many_continuations;
  if (flooded && !state.shutting) state.drop(Dropped::abuse);  // else it is counted
  if (taken < 0) state.broken = true;
  return !state.shutting && !state.broken && nghttp2_session_want_read(state.session.get());
}

void Connection::send(std::string& out, std::size_t most) {
  State& state = *state_;
  for (std::size_t sent = 0; sent < most && !state.gone;) {
    const std::uint8_t* bytes = nullptr;
    const ssize_t size = nghttp2_session_mem_send(state.session.get(), &bytes);
    if (size < 0) state.broken = true;
    if (size <= 0) return;
    out.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size));
    sent += static_cast<std::size_t>(size);
    state.wrote = true;
  }
}

bool Connection::congested() const {
  return nghttp2_session_get_outbound_queue_size(state_->session.get()) > most_frames_waiting;
}

void Connection::finish(std::int32_t id, std::variant<Reply, Refusal> result) {
  Stream* stream = state_->find(id);
  if (!stream || stream->role != Stream::Role::taken) return;
  if (Reply* reply = std::get_if<Reply>(&result)) return state_->answer(*stream, std::move(*reply));
  stream->call.reset();
  state_->refuse(*stream, std::get<Refusal>(result));
}

void Connection::drain() { state_->drain(); }

bool Connection::parting() const {
  return state_->draining == State::Drain::announced && !state_->shutting;
}

void Connection::end() { state_->shut(NGHTTP2_NO_ERROR, {}); }

Seconds Connection::tick(Seconds now) { return state_->tick(now); }

bool Connection::finished() const { return state_->finished(); }

void Connection::upstream_headers(std::int32_t id, Headers headers, bool end) {
  Stream* stream = state_->passed(id);
  if (!stream || stream->response_begun) return;
  if (end) state_->end_passed(*stream);
  state_->respond(*stream, headers, !end);
}

void Connection::upstream_data(std::int32_t id, std::string_view bytes) {
  Stream* stream = state_->passed(id);
  if (!stream || !stream->response_begun) return;
  stream->out.append(bytes);
  state_->resume(*stream);
}

void Connection::upstream_trailers(std::int32_t id, Headers trailers) {
  Stream* stream = state_->passed(id);
  if (!stream || !stream->response_begun) return;
  state_->end_passed(*stream);
  stream->out.trailers = std::make_shared<Headers>(std::move(trailers));
  stream->out.whole = true;
  state_->resume(*stream);
}

void Connection::upstream_reset(std::int32_t id, std::uint32_t error) {
  Stream* stream = state_->passed(id);
  if (!stream) return;
  state_->end_passed(*stream);
  state_->reset_stream(*stream, error);
}

void Connection::upstream_taken(std::int32_t id, std::size_t bytes) {
  Stream* stream = state_->find(id);
  if (!stream || stream->role != Stream::Role::passed) return;
  const std::size_t before = stream->consumed_before(bytes);
  state_->free_memory(*stream, before);
  bytes -= before;
  bytes = std::min(bytes, stream->unconsumed);
  stream->unconsumed -= bytes;
  state_->consume(*stream, bytes);
}

void Connection::upstream_lost() {
  state_->up_lost = true;
  for (const auto& stream : state_->streams) {
    const bool waits = stream->id != 0 && stream->role == Stream::Role::passed;
    if (waits && !stream->upstream_done) state_->lose(*stream);
  }
}

}  // namespace lane

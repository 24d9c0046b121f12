// UpstreamConnection: nghttp2's client side, the numbers of its streams and the client's, and the
// bytes that wait for a window.
//
// How the two sides give each other windows
//
// HTTP/2 (RFC 9113, 5.2) lets a receiver say how many bytes it has room for: a window, one for each
// stream and one for the connection. A sender whose window is used up waits for WINDOW_UPDATE. No
// buffer grows without bound, then, if each side opens a window only when bytes have left its own:
//
//   request   client ──DATA──▶ Connection ──data()──▶ UpstreamConnection ──DATA──▶ grpcio
//             client ◀─WINDOW_UPDATE─ Connection ◀──upstream_taken()── as soon as it is in a frame
//
//   response  grpcio ──DATA──▶ UpstreamConnection ──upstream_data()──▶ Connection ──DATA──▶ client
//             grpcio ◀─WINDOW_UPDATE─ UpstreamConnection ◀──taken()── as soon as it is in a frame
//
// A request's bytes wait in Stream::request until grpcio's window lets nghttp2 ask for them (read).
// There are never more of them than the client's window (or one message that Connection had to read
// first), as nobody has given it back. A call that waits for its turn (grpcio's
// SETTINGS_MAX_CONCURRENT_STREAMS) is no different: nothing is read.
//
// A response's bytes wait in Connection until the client's window lets them go. They are `held`, at
// most stream_window for each stream, so a client that does not read one response makes grpcio wait
// on that stream alone. All streams together hold at most connection_window: 256 responses that
// nobody reads. Only then do other streams of the same client wait for it; other clients never do,
// as they have connections of their own. Bytes are held until they are taken even if grpcio has
// ended the stream long ago: else a client could have 4096 short responses pile up and read none.
//
// What is thrown away counts as gone, or the connection's window would shrink for good: each byte
// of data() comes back by upstream_taken() once, whatever became of its stream, and reset() gives
// back what the stream held.
#include "upstream.h"

#include <nghttp2/nghttp2.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <new>
#include <unordered_map>
#include <utility>
#include <vector>

#include "h2.h"

namespace lane {
namespace {

constexpr std::int32_t stream_window = 64 * 1024;
constexpr std::int32_t connection_window = 16 * 1024 * 1024;
// Of one block of a response's headers, names and values; grpcio sends a few hundred bytes.
constexpr std::size_t most_header_bytes = 256 * 1024;
// Of a request's headers: no less than any limit that Connection has for them.
constexpr std::size_t most_sent_header_bytes = 1024 * 1024;
// HPACK's table for requests: its default, whatever the upstream would allow (RFC 7541, 4.2).
constexpr std::size_t deflate_table_bytes = 4096;

struct Stream {
  explicit Stream(std::int32_t client_number) : client(client_number) {}

  std::int32_t client;
  std::int32_t upstream = 0;     // 0 until it has begun
  Headers headers;               // the request's until it has begun, then the response's
  std::size_t header_bytes = 0;  // of those that come
  std::string request;           // not yet in a frame, from `framed` on
  std::size_t framed = 0;
  std::size_t held = 0;          // of the response, passed on and not yet taken
  bool request_ended = false;    // by the client; some of it may still wait
  bool deferred = false;         // nghttp2 has asked for bytes when there were none
  bool response_begun = false;
  bool response_ended = false;
  bool refused = false;          // never sent, as the upstream goes away

  std::size_t waiting() const { return request.size() - framed; }
};

struct DeleteSession {
  void operator()(nghttp2_session* session) const { nghttp2_session_del(session); }
};
struct DeleteCallbacks {
  void operator()(nghttp2_session_callbacks* callbacks) const {
    nghttp2_session_callbacks_del(callbacks);
  }
};
struct DeleteOption {
  void operator()(nghttp2_option* option) const { nghttp2_option_del(option); }
};

using Session = std::unique_ptr<nghttp2_session, DeleteSession>;

void check(int code) {
  if (code != 0) throw std::bad_alloc();  // nothing else can go wrong where this is called
}

nghttp2_nv field(const Header& header) {
  // nghttp2 copies both, and writes to neither.
  auto bytes = [](const std::string& text) {
    return const_cast<std::uint8_t*>(reinterpret_cast<const std::uint8_t*>(text.data()));
  };
  return {bytes(header.name), bytes(header.value), header.name.size(), header.value.size(),
          NGHTTP2_NV_FLAG_NONE};
}

// 1xx: more headers follow (RFC 9113, 8.1).
bool informational(const Headers& headers) {
  return !headers.empty() && headers[0].name == ":status" && headers[0].value[0] == '1';
}

}  // namespace

struct UpstreamConnection::State {
  State(Downstream& to, std::function<void()> on_output)
      : downstream(to), output(std::move(on_output)), session(make_session(this)) {
    const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_ENABLE_PUSH, 0}, {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, stream_window}};
    check(nghttp2_submit_settings(session.get(), NGHTTP2_FLAG_NONE, settings, 2));
    check(nghttp2_session_set_local_window_size(session.get(), NGHTTP2_FLAG_NONE, 0,
                                                connection_window));
  }

  // --- what the client's side asks ---

  void open(std::int32_t client, Headers headers, bool end) {
    if (lost) return;
    auto stream = std::make_unique<Stream>(client);
    stream->headers = std::move(headers);
    stream->request_ended = end;
    if (!streams.emplace(client, std::move(stream)).second) return;
    waiting.push_back(client);
    ask_for_output();
  }

  void data(std::int32_t client, std::string_view bytes, bool end) {
    Stream* stream = find(client);
    if (!stream || gone(*stream)) return give_back(client, bytes.size());
    if (stream->framed > stream->request.size() / 2) {
      stream->request.erase(0, std::exchange(stream->framed, 0));
    }
    stream->request.append(bytes);
    stream->request_ended |= end;
    if (std::exchange(stream->deferred, false)) {
      nghttp2_session_resume_data(session.get(), stream->upstream);
    }
    ask_for_output();
  }

  void reset(std::int32_t client, std::uint32_t error) {
    const auto found = streams.find(client);
    if (found == streams.end()) return;
    const std::unique_ptr<Stream> stream = std::move(found->second);
    streams.erase(found);
    if (stream->upstream == 0) {
      waiting.erase(std::find(waiting.begin(), waiting.end(), client));
    } else if (!gone(*stream)) {
      nghttp2_session_set_stream_user_data(session.get(), stream->upstream, nullptr);
      nghttp2_submit_rst_stream(session.get(), NGHTTP2_FLAG_NONE, stream->upstream, error);
    }
    nghttp2_session_consume_connection(session.get(), stream->held);
    ask_for_output();
    give_back(client, stream->waiting());
  }

  void taken(std::int32_t client, std::size_t bytes) {
    Stream* stream = find(client);
    if (!stream) return;
    bytes = std::min(bytes, stream->held);
    stream->held -= bytes;
    // Of a stream that is closed, it consumes the connection's window alone.
    nghttp2_session_consume(session.get(), stream->upstream, bytes);
    if (gone(*stream) && stream->held == 0) streams.erase(client);
    ask_for_output();
  }

  // --- bytes ---

  bool receive(const std::uint8_t* data, std::size_t size) {
    if (lost || size == 0) return false;
    busy = true;
    const ssize_t read = nghttp2_session_mem_recv(session.get(), data, size);
    busy = false;
    if (read < 0 || over()) return false;
    ask_for_output();
    return true;
  }

  void send(std::string& out, std::size_t most) {
    if (lost) return;
    busy = true;
    const std::size_t before = out.size();
    const std::uint8_t* bytes = nullptr;
    while (out.size() - before < most) {
      begin_waiting();
      const ssize_t size = nghttp2_session_mem_send(session.get(), &bytes);
      if (size < 0 || (size == 0 && !can_begin())) break;
      out.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size));
    }
    busy = false;
  }

  // Forgets all streams; what they had not sent is given back.
  void lose() {
    lost = true;
    waiting.clear();
    const auto left = std::exchange(streams, {});
    for (const auto& [client, stream] : left) give_back(client, stream->waiting());
  }

  // --- what nghttp2 tells ---

  static State& of(void* self) { return *static_cast<State*>(self); }

  static int on_begin_headers(nghttp2_session*, const nghttp2_frame* frame, void* self) noexcept {
    Stream* stream = of(self).by_upstream(frame->hd.stream_id);
    if (!stream) return 0;
    stream->header_bytes = 0;
    stream->headers.clear();
    return guarded([&] { stream->headers.reserve(8); });
  }

  static int on_header(nghttp2_session*, const nghttp2_frame* frame, const std::uint8_t* name,
                       std::size_t name_size, const std::uint8_t* value, std::size_t value_size,
                       std::uint8_t, void* self) noexcept {
    Stream* stream = of(self).by_upstream(frame->hd.stream_id);
    if (!stream) return 0;
    stream->header_bytes += name_size + value_size;
    // RST_STREAM with INTERNAL_ERROR, and the connection goes on.
    if (stream->header_bytes > most_header_bytes) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    return guarded([&] {
      stream->headers.push_back({{reinterpret_cast<const char*>(name), name_size},
                                 {reinterpret_cast<const char*>(value), value_size}});
    });
  }

  static int on_frame(nghttp2_session*, const nghttp2_frame* frame, void* self) noexcept {
    if (frame->hd.type == NGHTTP2_GOAWAY) of(self).going_away = true;
    if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) return 0;
    Stream* stream = of(self).by_upstream(frame->hd.stream_id);
    const bool end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
    if (!stream) return 0;
    return guarded([&] {
      if (frame->hd.type == NGHTTP2_HEADERS)
        of(self).pass_headers(*stream, end);
      else if (end)
        of(self).pass_trailers(*stream, {});
    });
  }

  static int on_data(nghttp2_session* session, std::uint8_t, std::int32_t number,
                     const std::uint8_t* data, std::size_t size, void* self) noexcept {
    Stream* stream = of(self).by_upstream(number);
    if (!stream) {
      nghttp2_session_consume_connection(session, size);
      return 0;
    }
    stream->held += size;
    const std::string_view bytes(reinterpret_cast<const char*>(data), size);
    return guarded([&] { of(self).downstream.upstream_data(stream->client, bytes); });
  }

  static int on_not_sent(nghttp2_session*, const nghttp2_frame* frame, int error,
                         void* self) noexcept {
    Stream* stream = of(self).by_upstream(frame->hd.stream_id);
    if (stream && frame->hd.type == NGHTTP2_HEADERS) {
      stream->refused = error == NGHTTP2_ERR_START_STREAM_NOT_ALLOWED;
    }
    return 0;
  }

  static int on_close(nghttp2_session*, std::int32_t number, std::uint32_t error,
                      void* self) noexcept {
    of(self).active -= 1;
    Stream* stream = of(self).by_upstream(number);
    if (!stream) return 0;
    return guarded([&] { of(self).close(*stream, error); });
  }

  static ssize_t read(nghttp2_session*, std::int32_t number, std::uint8_t* buffer, std::size_t room,
                      std::uint32_t* flags, nghttp2_data_source*, void* self) noexcept {
    Stream* stream = of(self).by_upstream(number);
    if (!stream) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    ssize_t size = 0;
    const int failed = guarded([&] { size = of(self).frame(*stream, buffer, room, *flags); });
    return failed ? failed : size;
  }

  // --- helpers; downstream is always told last, as it may end the stream in answer ---

  static Session make_session(State* self);

  Stream* find(std::int32_t client) {
    const auto found = streams.find(client);
    return found == streams.end() ? nullptr : found->second.get();
  }

  Stream* by_upstream(std::int32_t number) {
    return static_cast<Stream*>(nghttp2_session_get_stream_user_data(session.get(), number));
  }

  // Closed on the upstream's side; it is here for what the client has still to take.
  static bool gone(const Stream& stream) { return stream.upstream < 0; }

  void give_back(std::int32_t client, std::size_t bytes) {
    if (bytes > 0) downstream.upstream_taken(client, bytes);
  }

  // Streams of nghttp2's that it would queue are kept here, as a queued one that is reset stays in
  // its queue with all its headers. With GOAWAY they all go there, where they are refused.
  bool can_begin() const {
    if (waiting.empty()) return false;
    return going_away || active < nghttp2_session_get_remote_settings(
                                      session.get(), NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
  }

  void begin_waiting() {
    while (can_begin()) {
      Stream& stream = *find(waiting.front());
      waiting.pop_front();
      begin(stream);
    }
  }

  void begin(Stream& stream) {
    fields.clear();
    for (const Header& header : stream.headers) fields.push_back(field(header));
    nghttp2_data_provider body{};
    body.read_callback = read;
    const bool empty = stream.request_ended && stream.waiting() == 0;
    const std::int32_t number = nghttp2_submit_request(
        session.get(), nullptr, fields.data(), fields.size(), empty ? nullptr : &body, &stream);
    stream.headers.clear();
    if (number < 0) return close(stream, NGHTTP2_REFUSED_STREAM);  // all numbers are used up
    stream.upstream = number;
    active += 1;
  }

  ssize_t frame(Stream& stream, std::uint8_t* buffer, std::size_t room, std::uint32_t& flags) {
    const std::size_t size = std::min(room, stream.waiting());
    if (size == 0 && !stream.request_ended) {
      stream.deferred = true;
      return NGHTTP2_ERR_DEFERRED;
    }
    std::memcpy(buffer, stream.request.data() + stream.framed, size);
    stream.framed += size;
    if (stream.waiting() == 0) {
      stream.request.clear();
      stream.framed = 0;
      if (stream.request_ended) flags |= NGHTTP2_DATA_FLAG_EOF;
    }
    give_back(stream.client, size);
    return static_cast<ssize_t>(size);
  }

  void pass_headers(Stream& stream, bool end) {
    Headers headers = std::exchange(stream.headers, {});
    if (stream.response_begun) return pass_trailers(stream, std::move(headers));
    if (informational(headers)) return;
    stream.response_begun = true;
    stream.response_ended = end;
    downstream.upstream_headers(stream.client, std::move(headers), end);
  }

  void pass_trailers(Stream& stream, Headers trailers) {
    stream.response_ended = true;
    downstream.upstream_trailers(stream.client, std::move(trailers));
  }

  // Nothing is told after a complete response: RST_STREAM with NO_ERROR, by which grpcio stops a
  // client that goes on sending (RFC 9113, 8.1), would overtake what Connection has still to send.
  void close(Stream& stream, std::uint32_t error) {
    const std::int32_t client = stream.client;
    const std::size_t thrown_away = stream.waiting();
    const bool tell = !stream.response_ended;
    if (stream.refused) error = NGHTTP2_REFUSED_STREAM;
    stream.upstream = -1;
    stream.request.clear();
    stream.framed = 0;
    if (tell) nghttp2_session_consume_connection(session.get(), stream.held);
    if (tell || stream.held == 0) streams.erase(client);
    give_back(client, thrown_away);
    if (tell) downstream.upstream_reset(client, error);
  }

  // After GOAWAY and the last stream; or nghttp2 has seen what is no HTTP/2, and will say so.
  bool over() const {
    if (!going_away) return !nghttp2_session_check_request_allowed(session.get());
    return waiting.empty() && !nghttp2_session_want_read(session.get()) &&
           !nghttp2_session_want_write(session.get());
  }

  // Not from within nghttp2: whoever sends at once would call it again.
  void ask_for_output() {
    if (!busy && !lost && (can_begin() || nghttp2_session_want_write(session.get()))) output();
  }

  Downstream& downstream;
  std::function<void()> output;
  Session session;
  std::unordered_map<std::int32_t, std::unique_ptr<Stream>> streams;  // by the client's numbers
  std::deque<std::int32_t> waiting;  // of these, those that have not begun
  std::size_t active = 0;            // streams that nghttp2 has, those that were reset included
  std::vector<nghttp2_nv> fields;    // scratch
  bool busy = false;                 // nghttp2 is at work
  bool going_away = false;
  bool lost = false;
};

Session UpstreamConnection::State::make_session(State* self) {
  nghttp2_session_callbacks* made = nullptr;
  check(nghttp2_session_callbacks_new(&made));
  const std::unique_ptr<nghttp2_session_callbacks, DeleteCallbacks> callbacks(made);
  nghttp2_session_callbacks_set_on_begin_headers_callback(made, on_begin_headers);
  nghttp2_session_callbacks_set_on_header_callback(made, on_header);
  nghttp2_session_callbacks_set_on_frame_recv_callback(made, on_frame);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(made, on_data);
  nghttp2_session_callbacks_set_on_frame_not_send_callback(made, on_not_sent);
  nghttp2_session_callbacks_set_on_stream_close_callback(made, on_close);

  nghttp2_option* option = nullptr;
  check(nghttp2_option_new(&option));
  const std::unique_ptr<nghttp2_option, DeleteOption> options(option);
  nghttp2_option_set_no_auto_window_update(option, 1);
  nghttp2_option_set_no_closed_streams(option, 1);
  nghttp2_option_set_max_send_header_block_length(option, most_sent_header_bytes);
  nghttp2_option_set_max_deflate_dynamic_table_size(option, deflate_table_bytes);
  allow_outer_spaces(option);

  nghttp2_session* session = nullptr;
  check(nghttp2_session_client_new2(&session, made, self, option));
  return Session(session);
}

UpstreamConnection::UpstreamConnection(Downstream& downstream, std::function<void()> output)
    : state_(std::make_unique<State>(downstream, std::move(output))) {}

UpstreamConnection::~UpstreamConnection() = default;

void UpstreamConnection::open(std::int32_t stream, Headers headers, bool end) {
  state_->open(stream, std::move(headers), end);
}

void UpstreamConnection::data(std::int32_t stream, std::string_view bytes, bool end) {
  state_->data(stream, bytes, end);
}

void UpstreamConnection::reset(std::int32_t stream, std::uint32_t error) {
  state_->reset(stream, error);
}

void UpstreamConnection::taken(std::int32_t stream, std::size_t bytes) {
  state_->taken(stream, bytes);
}

bool UpstreamConnection::receive(const std::uint8_t* data, std::size_t size) {
  if (state_->receive(data, size)) return true;
  if (state_->lost) return false;
  state_->lose();
  state_->downstream.upstream_lost();  // may destroy this
  return false;
}

std::size_t UpstreamConnection::calls() const { return state_->streams.size(); }

void UpstreamConnection::send(std::string& out, std::size_t most) { state_->send(out, most); }

}  // namespace lane

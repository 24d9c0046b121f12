// UpstreamConnection against nghttp2's server side, in memory: no socket, no thread, no clock.
#include "upstream.h"

#include <doctest/doctest.h>
#include <nghttp2/nghttp2.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lane {
namespace {

constexpr std::size_t window = 64 * 1024;
constexpr std::size_t all_windows = 16 * 1024 * 1024;

std::string value(const Headers& headers, const std::string& name) {
  for (const Header& header : headers) {
    if (header.name == name) return header.value;
  }
  return "(none)";
}

Headers request(const std::string& path = "/s/Echo") {
  return {{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "localhost"},
          {"content-type", "application/grpc"}, {"te", "trailers"}};
}

const Headers response{{":status", "200"}, {"content-type", "application/grpc"}};
const Headers ok{{"grpc-status", "0"}};

// grpcio's place: it does what a test says, and keeps what arrived.
class Peer {
 public:
  struct Call {
    Headers headers;
    std::string body;      // received
    bool ended = false;
    std::optional<std::uint32_t> reset;
    std::string answer;    // to be sent from `sent` on, then, with `finish`, the trailers
    std::size_t sent = 0;
    Headers trailers;
    bool finish = false;
  };

  explicit Peer(std::uint32_t max_streams = 1000) {
    nghttp2_session_callbacks* callbacks = nullptr;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_option* option = nullptr;
    nghttp2_option_new(&option);
    nghttp2_option_set_no_auto_window_update(option, 1);
    nghttp2_option_set_no_rfc9113_leading_and_trailing_ws_validation(option, 1);
    nghttp2_option_set_stream_reset_rate_limit(option, 100'000, 100'000);
    nghttp2_option_set_max_send_header_block_length(option, 1'000'000);
    nghttp2_session* session = nullptr;
    nghttp2_session_server_new2(&session, callbacks, this, option);
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    session_.reset(session);
    const nghttp2_settings_entry settings{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, max_streams};
    nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, &settings, 1);
  }

  void answer(std::int32_t stream, const Headers& headers, bool end = false) {
    std::vector<nghttp2_nv> fields = as_fields(headers);
    nghttp2_data_provider body{{}, read};
    nghttp2_submit_response(get(), stream, fields.data(), fields.size(), end ? nullptr : &body);
  }

  void interim(std::int32_t stream) {
    const Headers early{{":status", "103"}, {"link", "early"}};
    std::vector<nghttp2_nv> fields = as_fields(early);
    nghttp2_submit_headers(get(), 0, stream, nullptr, fields.data(), fields.size(), nullptr);
  }

  void body(std::int32_t stream, const std::string& bytes) {
    calls[stream].answer += bytes;
    nghttp2_session_resume_data(get(), stream);
  }

  void finish(std::int32_t stream, Headers trailers) {
    calls[stream].trailers = std::move(trailers);
    calls[stream].finish = true;
    nghttp2_session_resume_data(get(), stream);
  }

  void reset(std::int32_t stream, std::uint32_t error) {
    nghttp2_submit_rst_stream(get(), NGHTTP2_FLAG_NONE, stream, error);
  }

  void go_away(std::int32_t last) {
    nghttp2_submit_goaway(get(), NGHTTP2_FLAG_NONE, last, NGHTTP2_NO_ERROR, nullptr, 0);
  }

  void read_on(std::int32_t stream, std::size_t bytes) {
    nghttp2_session_consume(get(), stream, bytes);
  }

  bool receive(const std::string& bytes) {
    const auto* data = reinterpret_cast<const std::uint8_t*>(bytes.data());
    return nghttp2_session_mem_recv(get(), data, bytes.size()) >= 0;
  }

  std::string send() {
    std::string out;
    const std::uint8_t* bytes = nullptr;
    for (ssize_t size; (size = nghttp2_session_mem_send(get(), &bytes)) > 0;) {
      out.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size));
    }
    return out;
  }

  std::int32_t open_window() { return nghttp2_session_get_remote_window_size(get()); }

  std::map<std::int32_t, Call> calls;  // by the upstream's numbers
  bool reads = true;                   // gives the window back at once

 private:
  struct Delete {
    void operator()(nghttp2_session* session) const { nghttp2_session_del(session); }
  };

  static std::vector<nghttp2_nv> as_fields(const Headers& headers) {
    std::vector<nghttp2_nv> fields;
    for (const Header& header : headers) {
      auto bytes = [](const std::string& text) {
        return const_cast<std::uint8_t*>(reinterpret_cast<const std::uint8_t*>(text.data()));
      };
      fields.push_back({bytes(header.name), bytes(header.value), header.name.size(),
                        header.value.size(), NGHTTP2_NV_FLAG_NONE});
    }
    return fields;
  }

  static Peer& of(void* self) { return *static_cast<Peer*>(self); }

  static int on_header(nghttp2_session*, const nghttp2_frame* frame, const std::uint8_t* name,
                       std::size_t name_size, const std::uint8_t* text, std::size_t text_size,
                       std::uint8_t, void* self) {
    of(self).calls[frame->hd.stream_id].headers.push_back(
        {{reinterpret_cast<const char*>(name), name_size},
         {reinterpret_cast<const char*>(text), text_size}});
    return 0;
  }

  static int on_data(nghttp2_session* session, std::uint8_t, std::int32_t stream,
                     const std::uint8_t* data, std::size_t size, void* self) {
    of(self).calls[stream].body.append(reinterpret_cast<const char*>(data), size);
    if (of(self).reads) nghttp2_session_consume(session, stream, size);
    return 0;
  }

  static int on_frame(nghttp2_session*, const nghttp2_frame* frame, void* self) {
    if (frame->hd.stream_id == 0 || frame->hd.type == NGHTTP2_WINDOW_UPDATE) return 0;
    Call& call = of(self).calls[frame->hd.stream_id];
    if (frame->hd.type == NGHTTP2_RST_STREAM) call.reset = frame->rst_stream.error_code;
    else if (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) call.ended = true;
    return 0;
  }

  static ssize_t read(nghttp2_session* session, std::int32_t stream, std::uint8_t* buffer,
                      std::size_t room, std::uint32_t* flags, nghttp2_data_source*, void* self) {
    Call& call = of(self).calls[stream];
    const std::size_t size = std::min(room, call.answer.size() - call.sent);
    if (size == 0 && !call.finish) return NGHTTP2_ERR_DEFERRED;
    std::memcpy(buffer, call.answer.data() + call.sent, size);
    call.sent += size;
    if (call.finish && call.sent == call.answer.size()) {
      *flags |= NGHTTP2_DATA_FLAG_EOF;
      if (!call.trailers.empty()) {
        *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
        std::vector<nghttp2_nv> fields = as_fields(call.trailers);
        nghttp2_submit_trailer(session, stream, fields.data(), fields.size());
      }
    }
    return static_cast<ssize_t>(size);
  }

  nghttp2_session* get() { return session_.get(); }

  std::unique_ptr<nghttp2_session, Delete> session_;
};

// The Connection's place: it keeps what it was told.
struct Client : Downstream {
  struct Call {
    int responses = 0;
    Headers headers;
    std::string body;
    std::optional<Headers> trailers;
    std::optional<std::uint32_t> reset;
    std::size_t taken = 0;
    std::string order;
  };

  void upstream_headers(std::int32_t stream, Headers headers, bool end) override {
    Call& call = calls[stream];
    call.order += end ? "H" : "h";
    call.responses += 1;
    call.headers = std::move(headers);
    if (on_headers) on_headers(stream);
  }
  void upstream_data(std::int32_t stream, std::string_view bytes) override {
    calls[stream].body += bytes;
    if (on_data) on_data(stream, bytes.size());
  }
  void upstream_trailers(std::int32_t stream, Headers trailers) override {
    calls[stream].order += "t";
    calls[stream].trailers = std::move(trailers);
  }
  void upstream_reset(std::int32_t stream, std::uint32_t error) override {
    calls[stream].order += "r";
    calls[stream].reset = error;
  }
  void upstream_taken(std::int32_t stream, std::size_t bytes) override {
    calls[stream].taken += bytes;
  }
  void upstream_lost() override {
    lost += 1;
    if (on_lost) on_lost();
  }

  std::map<std::int32_t, Call> calls;  // by the client's numbers
  int lost = 0;
  std::function<void(std::int32_t)> on_headers;
  std::function<void(std::int32_t, std::size_t)> on_data;
  std::function<void()> on_lost;
};

struct Pair {
  explicit Pair(std::uint32_t max_streams = 1000) : peer(max_streams) { pump(); }

  // Moves bytes until neither side has any.
  void pump(std::size_t most = 65536) {
    for (bool moved = true; moved;) {
      std::string out;
      upstream->send(out, most);
      moved = !out.empty();
      REQUIRE(peer.receive(out));
      const std::string back = peer.send();
      moved |= !back.empty();
      if (!back.empty()) alive = upstream->receive(bytes(back), back.size());
      if (!alive) return;
    }
  }

  static const std::uint8_t* bytes(const std::string& text) {
    return reinterpret_cast<const std::uint8_t*>(text.data());
  }

  Peer peer;
  Client client;
  int asked = 0;
  std::unique_ptr<UpstreamConnection> upstream =
      std::make_unique<UpstreamConnection>(client, [this] { asked += 1; });
  bool alive = true;
};

}  // namespace

TEST_CASE("A unary call goes through with its headers, its message and its trailers") {
  Pair pair;
  Headers headers = request();
  headers.push_back({"trace-bin", "AAEC/w"});
  headers.push_back({"spaced", " a b "});
  pair.upstream->open(7, headers, false);
  pair.upstream->data(7, "question", true);
  CHECK(pair.asked > 0);
  pair.pump();

  REQUIRE(pair.peer.calls.size() == 1);
  const Peer::Call& call = pair.peer.calls[1];  // its own number
  REQUIRE(call.headers.size() >= headers.size() - 1);
  for (std::size_t i = 0; i < 7; ++i) {
    CHECK(call.headers[i].name == headers[i].name);
    CHECK(call.headers[i].value == headers[i].value);
  }
  CHECK(call.body == "question");
  CHECK(call.ended);
  CHECK(pair.client.calls[7].taken == 8);
  CHECK(pair.upstream->calls() == 1);

  pair.peer.answer(1, response);
  pair.peer.body(1, "answer");
  pair.peer.finish(1, {{"grpc-status", "0"}, {"cost-bin", "AAE"}, {"padded", " x "}});
  pair.pump();
  const Client::Call& told = pair.client.calls[7];
  CHECK(told.order == "ht");
  REQUIRE(!told.headers.empty());
  CHECK(told.headers[0].name == ":status");
  CHECK(value(told.headers, "content-type") == "application/grpc");
  CHECK(told.body == "answer");
  REQUIRE(told.trailers);
  CHECK(value(*told.trailers, "grpc-status") == "0");
  CHECK(value(*told.trailers, "cost-bin") == "AAE");
  CHECK(value(*told.trailers, "padded") == " x ");
  CHECK(pair.upstream->calls() == 1);  // until the client has all of it
  pair.upstream->taken(7, 6);
  CHECK(pair.upstream->calls() == 0);
}

TEST_CASE("A request without a body ends with its headers") {
  Pair pair;
  pair.upstream->open(1, request(), true);
  pair.pump();
  CHECK(pair.peer.calls[1].ended);
  CHECK(pair.peer.calls[1].body.empty());
}

TEST_CASE("The end of a request may come alone, and later") {
  Pair pair;
  pair.upstream->open(1, request(), false);
  pair.pump();
  pair.upstream->data(1, "a", false);
  pair.pump();
  CHECK(pair.peer.calls[1].body == "a");
  CHECK(!pair.peer.calls[1].ended);
  pair.upstream->data(1, "", true);
  pair.pump();
  CHECK(pair.peer.calls[1].ended);
}

TEST_CASE("A response of trailers only is told as headers that are the end") {
  Pair pair;
  pair.upstream->open(1, request(), true);
  pair.pump();
  pair.peer.answer(1, {{":status", "200"}, {"grpc-status", "12"}}, true);
  pair.pump();
  CHECK(pair.client.calls[1].order == "H");
  CHECK(value(pair.client.calls[1].headers, "grpc-status") == "12");
}

TEST_CASE("A response that ends without trailers is told as empty ones") {
  Pair pair;
  pair.upstream->open(1, request(), true);
  pair.pump();
  pair.peer.answer(1, response);
  pair.peer.body(1, "x");
  pair.peer.finish(1, {});
  pair.pump();
  CHECK(pair.client.calls[1].order == "ht");
  CHECK(pair.client.calls[1].trailers->empty());
}

TEST_CASE("Informational headers are not passed on") {
  Pair pair;
  pair.upstream->open(1, request(), true);
  pair.pump();
  pair.peer.interim(1);
  pair.pump();
  CHECK(pair.client.calls[1].order.empty());
  pair.peer.answer(1, response);
  pair.peer.finish(1, ok);
  pair.pump();
  CHECK(pair.client.calls[1].order == "ht");
  CHECK(value(pair.client.calls[1].headers, ":status") == "200");
}

TEST_CASE("A response may have 110 kB of headers") {
  Pair pair;
  pair.upstream->open(1, request(), true);
  pair.pump();
  Headers many = response;
  for (int i = 0; i < 110; ++i) many.push_back({"n" + std::to_string(i), std::string(1000, 'x')});
  pair.peer.answer(1, many);
  pair.pump();
  CHECK(pair.client.calls[1].headers.size() == many.size());
}

TEST_CASE("More headers than are kept, small as they may come by HPACK, end their call alone") {
  Pair pair;
  for (int stream : {1, 3}) pair.upstream->open(stream, request(), true);
  pair.pump();
  Headers many = response;
  for (int i = 0; i < 100; ++i) many.push_back({"same", std::string(3000, 'x')});
  pair.peer.answer(1, many);
  pair.peer.answer(3, response);
  pair.peer.finish(3, ok);
  pair.pump();
  CHECK(pair.client.calls[1].order == "r");
  CHECK(*pair.client.calls[1].reset == NGHTTP2_INTERNAL_ERROR);
  CHECK(pair.client.calls[3].order == "ht");
}

TEST_CASE("What the upstream does not read is not taken from the client") {
  Pair pair;
  pair.peer.reads = false;
  pair.upstream->open(1, request(), false);
  const std::string bytes(200'000, 'x');
  pair.upstream->data(1, bytes, true);
  pair.pump();
  CHECK(pair.peer.calls[1].body.size() == 65535);  // HTTP/2's first window
  CHECK(pair.client.calls[1].taken == 65535);
  pair.peer.read_on(1, 40'000);
  pair.pump();
  CHECK(pair.client.calls[1].taken == 105'535);
  pair.peer.read_on(1, 65'535);
  pair.pump();
  pair.peer.read_on(1, 65'535);
  pair.pump();
  CHECK(pair.peer.calls[1].body == bytes);
  CHECK(pair.peer.calls[1].ended);
  CHECK(pair.client.calls[1].taken == bytes.size());
}

TEST_CASE("What the client does not take stops at the stream's window") {
  Pair pair;
  pair.upstream->open(1, request(), true);
  pair.pump();
  pair.peer.answer(1, response);
  pair.peer.body(1, std::string(1'000'000, 'y'));
  pair.peer.finish(1, ok);
  pair.pump();
  CHECK(pair.client.calls[1].body.size() == window);
  pair.upstream->taken(1, 40'000);
  pair.pump();
  CHECK(pair.client.calls[1].body.size() == window + 40'000);
  while (!pair.client.calls[1].trailers) {
    const std::size_t before = pair.client.calls[1].body.size();
    pair.upstream->taken(1, window);
    pair.pump();
    REQUIRE(pair.client.calls[1].body.size() > before);
  }
  CHECK(pair.client.calls[1].body == std::string(1'000'000, 'y'));
}

TEST_CASE("A stream that its client does not read leaves the others alone") {
  Pair pair;
  for (int stream : {1, 3}) pair.upstream->open(stream, request(), true);
  pair.pump();
  pair.client.on_data = [&pair](std::int32_t stream, std::size_t bytes) {
    if (stream == 3) pair.upstream->taken(3, bytes);  // at once, from within
  };
  for (int stream : {1, 3}) {
    pair.peer.answer(stream, response);
    pair.peer.body(stream, std::string(20'000'000, 'z'));
    pair.peer.finish(stream, ok);
  }
  pair.pump();
  CHECK(pair.client.calls[1].body.size() == window);
  CHECK(pair.client.calls[3].body.size() == 20'000'000);
  CHECK(pair.client.calls[3].trailers);
}

TEST_CASE("All that is not taken is bounded, be its streams open or not, and resets give it back") {
  Pair pair;
  const int calls = 300;
  for (int i = 0; i < calls; ++i) pair.upstream->open(2 * i + 1, request(), true);
  pair.pump();
  for (int i = 0; i < calls; ++i) {
    pair.peer.answer(2 * i + 1, response);
    pair.peer.body(2 * i + 1, std::string(window, 'w'));
    pair.peer.finish(2 * i + 1, ok);
  }
  pair.pump();
  auto arrived = [&pair] {
    std::size_t bytes = 0;
    for (const auto& call : pair.client.calls) bytes += call.second.body.size();
    return bytes;
  };
  CHECK(arrived() == all_windows);

  // One takes what it has and another goes away: as much follows, once it is worth a frame.
  for (int i = 0; i < 100; ++i) pair.upstream->taken(2 * i + 1, window);
  for (int i = 100; i < 200; ++i) pair.upstream->reset(2 * i + 1, NGHTTP2_CANCEL);
  pair.pump();
  for (int i = 200; i < calls; ++i) CHECK(pair.client.calls[2 * i + 1].order == "ht");
  for (int i = 200; i < calls; ++i) pair.upstream->taken(2 * i + 1, window);
  pair.pump();
  CHECK(pair.peer.open_window() >= static_cast<std::int32_t>(all_windows / 2));
}

TEST_CASE("A client that takes all has its window whole after any number of calls") {
  Pair pair;
  pair.client.on_data = [&pair](std::int32_t stream, std::size_t bytes) {
    pair.upstream->taken(stream, bytes);
  };
  for (int i = 0; i < 600; ++i) {  // 600 times 60 000 bytes are more than its window
    const int stream = 2 * i + 1;
    pair.upstream->open(stream, request(), true);
    pair.pump();
    pair.peer.answer(stream, response);
    pair.peer.body(stream, std::string(60'000, 'a'));
    pair.peer.finish(stream, ok);
    pair.pump();
    REQUIRE(pair.client.calls[stream].order == "ht");
    REQUIRE(pair.upstream->calls() == 0);
  }
}

TEST_CASE("A reset by the upstream is passed on with its code, and what waited is given back") {
  Pair pair;
  pair.peer.reads = false;
  pair.upstream->open(1, request(), false);
  pair.upstream->data(1, std::string(100'000, 'x'), false);
  pair.pump();
  pair.peer.reset(1, NGHTTP2_ENHANCE_YOUR_CALM);
  pair.pump();
  CHECK(pair.client.calls[1].order == "r");
  CHECK(*pair.client.calls[1].reset == NGHTTP2_ENHANCE_YOUR_CALM);
  CHECK(pair.client.calls[1].taken == 100'000);
  pair.upstream->data(1, "late", false);
  CHECK(pair.client.calls[1].taken == 100'004);
  pair.upstream->reset(1, NGHTTP2_CANCEL);  // nothing to end
  pair.pump();
  CHECK(pair.alive);
}

TEST_CASE("After a complete response a reset is not told, and what waited is given back") {
  for (const bool ended : {false, true}) {
    CAPTURE(ended);
    Pair pair;
    pair.peer.reads = false;
    pair.upstream->open(1, request(), false);
    pair.upstream->data(1, std::string(100'000, 'x'), ended);  // some waits in any case
    pair.pump();
    pair.peer.answer(1, response);
    pair.peer.body(1, "early");
    pair.peer.finish(1, ok);
    pair.pump();
    pair.peer.reset(1, NGHTTP2_NO_ERROR);
    pair.pump();
    CHECK(pair.client.calls[1].order == "ht");
    CHECK(pair.client.calls[1].taken == 100'000);
    pair.upstream->data(1, "late", true);
    CHECK(pair.client.calls[1].taken == 100'004);
  }
}

TEST_CASE("A client may go away in each state of its call") {
  enum { unsent, sent, some_body, answered, ended };
  for (const int state : {unsent, sent, some_body, answered, ended}) {
    CAPTURE(state);
    Pair pair;
    pair.upstream->open(1, request(), false);
    if (state >= sent) pair.pump();
    if (state >= some_body) {
      pair.peer.reads = false;
      pair.upstream->data(1, std::string(100'000, 'x'), state >= answered);
      pair.pump();
    }
    if (state >= answered) {
      pair.peer.answer(1, response);
      pair.peer.body(1, std::string(1000, 'x'));
    }
    if (state >= ended) pair.peer.finish(1, ok);
    pair.pump();
    const std::string order = pair.client.calls[1].order;
    pair.upstream->reset(1, NGHTTP2_CANCEL);
    if (state >= some_body) CHECK(pair.client.calls[1].taken == 100'000);
    pair.upstream->data(1, "", true);
    pair.upstream->taken(1, 1000);
    pair.upstream->reset(1, NGHTTP2_CANCEL);
    if (state < ended) pair.peer.body(1, "more");
    pair.pump();
    CHECK(pair.client.calls[1].order == order);  // nothing more is told
    if (state >= sent) CHECK(*pair.peer.calls[1].reset == NGHTTP2_CANCEL);

    pair.peer.reads = true;
    pair.upstream->open(3, request(), true);
    pair.pump();
    const std::int32_t number = pair.peer.calls.rbegin()->first;
    pair.peer.answer(number, response);
    pair.peer.finish(number, ok);
    pair.pump();
    CHECK(pair.client.calls[3].order == "ht");
  }
}

TEST_CASE("A client may go away in answer to what it is told") {
  Pair pair;
  pair.upstream->open(1, request(), false);
  pair.upstream->open(3, request(), false);
  pair.pump();
  pair.client.on_headers = [&pair](std::int32_t stream) {
    if (stream == 1) pair.upstream->reset(1, NGHTTP2_CANCEL);
  };
  pair.client.on_data = [&pair](std::int32_t stream, std::size_t) {
    pair.upstream->reset(stream, NGHTTP2_CANCEL);
  };
  for (int stream : {1, 3}) {
    pair.peer.answer(stream, response);
    pair.peer.body(stream, "x");
    pair.peer.finish(stream, ok);
  }
  pair.pump();
  CHECK(pair.client.calls[1].order == "h");
  CHECK(pair.client.calls[1].body.empty());
  CHECK(pair.client.calls[3].order == "h");
  CHECK(pair.client.calls[3].body == "x");
  CHECK(pair.alive);
}

TEST_CASE("Calls beyond the upstream's limit wait for their turn, and may go away while they do") {
  Pair pair(2);
  for (int i = 0; i < 6; ++i) {
    pair.upstream->open(2 * i + 1, request(), false);
    pair.upstream->data(2 * i + 1, "body", true);
  }
  pair.pump();
  CHECK(pair.peer.calls.size() == 2);
  CHECK(pair.client.calls[5].taken == 0);  // it waits: the client's window stays closed
  pair.upstream->reset(5, NGHTTP2_CANCEL);
  CHECK(pair.client.calls[5].taken == 4);
  CHECK(pair.client.calls.count(7) == 0);

  pair.upstream->reset(1, NGHTTP2_CANCEL);  // one that runs: its place is free
  pair.pump();
  CHECK(pair.peer.calls.size() == 3);
  for (std::int32_t number : {3, 5, 7, 9}) {
    pair.peer.answer(number, response);
    pair.peer.finish(number, ok);
    pair.pump();
  }
  for (int stream : {3, 7, 9, 11}) CHECK(pair.client.calls[stream].order == "ht");
  CHECK(pair.client.calls[1].order.empty());
  CHECK(pair.client.calls[5].order.empty());
}

TEST_CASE("Any number of calls that begin and go away at once leaves room for others") {
  Pair pair(2);
  for (int i = 0; i < 5000; ++i) {
    pair.upstream->open(2 * i + 1, request(), false);
    if (i % 3 == 0) pair.pump();
    pair.upstream->reset(2 * i + 1, NGHTTP2_CANCEL);
    if (i % 5 == 0) pair.pump();
  }
  pair.upstream->open(20001, request(), true);
  pair.pump();
  const std::int32_t number = pair.peer.calls.rbegin()->first;
  CHECK(pair.peer.calls[number].ended);
  pair.peer.answer(number, response);
  pair.peer.finish(number, ok);
  pair.pump();
  CHECK(pair.client.calls[20001].order == "ht");
}

TEST_CASE("Of an upstream that goes away, calls it did not see are refused, and others go on") {
  Pair pair(3);
  for (int i = 0; i < 5; ++i) pair.upstream->open(2 * i + 1, request(), true);
  pair.pump();
  CHECK(pair.peer.calls.size() == 3);
  pair.peer.go_away(3);
  pair.pump();
  for (int stream : {5, 7, 9}) {  // beyond its last; those that waited
    CAPTURE(stream);
    REQUIRE(pair.client.calls[stream].reset);
    CHECK(*pair.client.calls[stream].reset == NGHTTP2_REFUSED_STREAM);
  }
  pair.upstream->open(11, request(), true);
  pair.upstream->data(11, "", true);
  pair.pump();
  CHECK(*pair.client.calls[11].reset == NGHTTP2_REFUSED_STREAM);
  CHECK(pair.client.lost == 0);

  for (int stream : {1, 3}) {
    pair.peer.answer(stream, response);
    pair.peer.finish(stream, ok);
  }
  pair.pump();
  for (int stream : {1, 3}) CHECK(pair.client.calls[stream].order == "ht");
  CHECK(!pair.alive);  // nothing is left
  CHECK(pair.client.lost == 1);
}

TEST_CASE("A connection that ends is told once, and what waited is given back") {
  Pair pair;
  pair.peer.reads = false;
  pair.upstream->open(1, request(), false);
  pair.upstream->data(1, std::string(100'000, 'x'), false);
  pair.pump();
  CHECK(!pair.upstream->receive(nullptr, 0));
  CHECK(pair.client.lost == 1);
  CHECK(pair.client.calls[1].taken == 100'000);
  CHECK(pair.client.calls[1].order.empty());

  CHECK(!pair.upstream->receive(nullptr, 0));
  pair.upstream->open(3, request(), false);
  pair.upstream->data(3, "x", true);
  pair.upstream->taken(1, 5);
  pair.upstream->reset(1, NGHTTP2_CANCEL);
  std::string out;
  pair.upstream->send(out, 65536);
  CHECK(out.empty());
  CHECK(pair.client.lost == 1);
  CHECK(pair.client.calls[3].taken == 1);
}

TEST_CASE("What is not HTTP/2 ends the connection, which may be destroyed by who is told") {
  Pair pair;
  pair.client.on_lost = [&pair] { pair.upstream.reset(); };
  const std::string nonsense(100, 'X');
  CHECK(!pair.upstream->receive(Pair::bytes(nonsense), nonsense.size()));
  CHECK(pair.client.lost == 1);
}

TEST_CASE("Sending stops at about what was asked for") {
  Pair pair;
  pair.upstream->open(1, request(), false);
  pair.upstream->data(1, std::string(60'000, 'x'), true);
  std::string out;
  pair.upstream->send(out, 1000);
  CHECK(out.size() <= 1000 + 16384 + 9);
  CHECK(pair.client.calls[1].taken <= out.size());
  REQUIRE(pair.peer.receive(out));
  pair.pump(1000);
  CHECK(pair.peer.calls[1].body.size() == 60'000);
  CHECK(pair.peer.calls[1].ended);
}

TEST_CASE("A thousand calls at once get their own answers, whatever order these come in") {
  Pair pair;
  for (int i = 0; i < 1000; ++i) {
    pair.upstream->open(100 + 2 * i + 1, request(), false);
    pair.upstream->data(100 + 2 * i + 1, std::to_string(i), true);
  }
  pair.pump();
  REQUIRE(pair.peer.calls.size() == 1000);
  for (auto call = pair.peer.calls.rbegin(); call != pair.peer.calls.rend(); ++call) {
    pair.peer.answer(call->first, response);
    pair.peer.body(call->first, "re: " + call->second.body);
    pair.peer.finish(call->first, ok);
  }
  pair.pump();
  for (int i = 0; i < 1000; ++i) {
    CHECK(pair.client.calls[100 + 2 * i + 1].body == "re: " + std::to_string(i));
    CHECK(pair.client.calls[100 + 2 * i + 1].order == "ht");
  }
}

}  // namespace lane

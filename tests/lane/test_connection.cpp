// What a client gets of a connection: answers of the service, what is passed on, and refusals.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "talking.h"

using namespace lane;

namespace {

using Fields = std::map<std::string, std::string>;

const Fields answer_headers{{":status", "200"},
                            {"content-type", "application/grpc"},
                            {"grpc-accept-encoding", "identity, deflate, gzip"}};

std::string status_of(const Received& received) {
  const Fields& fields = received.trailers.empty() ? received.headers : received.trailers;
  const auto found = fields.find("grpc-status");
  return found == fields.end() ? "(none)" : found->second;
}

std::string message_of(const Received& received) {
  const auto found = received.headers.find("grpc-message");
  return found == received.headers.end() ? "(none)" : found->second;
}

std::string framed(const std::string& message) { return frame_prefix(message.size()) + message; }

Headers other_headers() {
  return with(infer_headers(), ":path", "/inference.GRPCInferenceService/ModelReady");
}

std::string large_request(std::size_t floats) {
  return times_request(std::vector<float>(floats, 1.0f));
}

}  // namespace

TEST_CASE("ModelInfer is answered with headers, message and trailers as grpcio sends them") {
  Talk talk;
  const auto id = talk.client.infer(times_request({2.5f, -1.0f}));
  talk.exchange();
  talk.answer();
  const Received& got = talk.got(id);
  CHECK(got.headers == answer_headers);
  CHECK(last_floats(got.body, 2) == std::vector<float>{7.5f, -3.0f});
  CHECK(got.body.substr(0, 5) == frame_prefix(got.body.size() - 5));
  CHECK(got.trailers.at("grpc-status") == "0");
  CHECK(got.trailers.at("batch-size") == "1");
  CHECK(got.trailers.at("model-version") == "7");
  CHECK(got.trailers.at("server-timing").rfind("queue;dur=", 0) == 0);
  CHECK(got.ended);
  CHECK(!got.reset);
  CHECK(talk.log.calls.empty());
}

TEST_CASE("A connection announces its limits as grpcio does") {
  Limits limits;
  limits.max_streams = 77;
  limits.max_header_bytes = 12345;
  Talk talk(limits);
  talk.exchange();
  CHECK(talk.client.settings.at(NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS) == 77);
  CHECK(talk.client.settings.at(NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE) == 12345);
}

TEST_CASE("Bytes may come one by one, and go one frame at a time") {
  Talk talk;
  const auto id = talk.client.infer(times_request({4.0f}));
  for (const char byte : talk.client.output()) talk.tell({byte});
  talk.serving.service->wake();
  Finished finished = talk.serving.outbox->take();
  talk.connection->finish(id, std::move(finished.result));
  for (std::string bytes; !(bytes = talk.heard(1)).empty();) talk.client.input(bytes);
  CHECK(last_floats(talk.got(id).body, 1) == std::vector<float>{12.0f});
}

TEST_CASE("Many calls of one connection each get their own answer") {
  Talk talk;
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 500; ++i) {
    ids.push_back(talk.client.infer(times_request({static_cast<float>(i)})));
  }
  talk.exchange();
  talk.answer(500);
  for (int i = 0; i < 500; ++i) {
    CHECK(last_floats(talk.got(ids[static_cast<std::size_t>(i)]).body, 1)[0] == 3.0f * i);
  }
}

TEST_CASE("Streams that ended make room for others, without growing memory") {
  Talk talk;
  for (int i = 0; i < 50; ++i) {
    const auto id = talk.client.infer(times_request({static_cast<float>(i)}));
    talk.exchange();
    talk.answer();
    CHECK(last_floats(talk.got(id).body, 1)[0] == 3.0f * i);
  }
}

TEST_CASE("What the service refuses is told in headers that are trailers, too") {
  Talk talk;
  const std::string odd = message_field(1, "times");
  const auto id = talk.client.infer(odd);
  talk.exchange();
  const Received& got = talk.got(id);
  CHECK(status_of(got) == "3");
  CHECK(got.headers.at(":status") == "200");
  CHECK(got.headers.at("content-type") == "application/grpc");
  CHECK(got.headers.count("grpc-accept-encoding") == 0);
  CHECK(got.body.empty());
  CHECK(got.trailers.empty());
  CHECK(got.ended);
}

TEST_CASE("A message beyond the limit is refused as soon as its prefix says so") {
  Limits limits;
  limits.max_message_bytes = 100;
  Talk talk(limits);
  const auto id = talk.client.request(infer_headers(), frame_prefix(200), false);
  talk.exchange();
  CHECK(status_of(talk.got(id)) == "8");
  CHECK(message_of(talk.got(id)) == "SERVER: Received message larger than max (200 vs. 100)");
  CHECK(talk.got(id).reset == NGHTTP2_NO_ERROR);
}

TEST_CASE("A message of exactly the limit is taken") {
  const std::string message = times_request({1.0f});
  Limits limits;
  limits.max_message_bytes = message.size();
  Talk talk(limits);
  talk.serving.executor->hold();
  talk.client.infer(message);
  talk.exchange();
  CHECK(talk.serving.service->in_flight() == 1);
  talk.serving.executor->release();
}

TEST_CASE("Headers beyond the limit are refused, and the rest of the request is not wanted") {
  Limits limits;
  limits.max_header_bytes = 1000;
  Talk talk(limits);
  const auto id =
      talk.client.request(with(infer_headers(), "x-long", std::string(2000, 'a')), "", false);
  talk.exchange();
  CHECK(status_of(talk.got(id)) == "8");
  CHECK(message_of(talk.got(id)).rfind("received metadata size exceeds hard limit (", 0) == 0);
  CHECK(message_of(talk.got(id)).find(" vs. 1000)") != std::string::npos);
  CHECK(talk.got(id).reset == NGHTTP2_NO_ERROR);
  CHECK(talk.log.calls.empty());
}

TEST_CASE("Where there is no room a request is refused before its body is read") {
  Talk talk({}, {}, 1);
  talk.serving.executor->hold();
  const auto first = talk.client.infer(times_request({1.0f}));
  talk.exchange();
  const auto second = talk.client.request(infer_headers(), "", false);
  talk.exchange();
  CHECK(status_of(talk.got(second)) == "8");
  CHECK(message_of(talk.got(second)) == "the server is overloaded");
  CHECK(talk.got(second).headers.count("grpc-retry-pushback-ms") == 1);
  CHECK(talk.got(second).reset == NGHTTP2_NO_ERROR);
  talk.serving.executor->release();
  talk.answer();
  CHECK(status_of(talk.got(first)) == "0");
}

TEST_CASE("A ModelInfer call that was passed on takes room until it is answered") {
  Talk talk({}, {}, 1);
  const auto first = talk.client.infer(times_request({1.0f}, "unknown"));
  talk.exchange();
  const auto second = talk.client.infer(times_request({1.0f}));
  talk.exchange();
  CHECK(status_of(talk.got(second)) == "8");
  talk.connection->upstream_headers(first, {{":status", "200"}, {"grpc-status", "5"}}, true);
  talk.exchange();
  const auto third = talk.client.infer(times_request({1.0f}));
  talk.exchange();
  talk.answer();
  CHECK(status_of(talk.got(third)) == "0");
}

TEST_CASE("While the server stops, calls that were on their way are taken, if there is room") {
  Talk talk({}, {}, 1);
  talk.serving.service->draining = true;
  talk.serving.executor->hold();
  const auto first = talk.client.infer(times_request({1.0f}));
  talk.exchange();
  const auto second = talk.client.infer(times_request({1.0f}));
  const auto other = talk.client.request(other_headers(), framed(""));
  talk.exchange();
  CHECK(status_of(talk.got(second)) == "14");
  CHECK(message_of(talk.got(second)) == "the server is stopping");
  CHECK(talk.log.calls.count(other) == 1);
  talk.serving.executor->release();
  talk.answer();
  CHECK(status_of(talk.got(first)) == "0");
}

TEST_CASE("Other calls are passed on with all their headers, and who called") {
  Talk talk;
  Headers headers = with(other_headers(), "x-request-id", "abc");
  headers = with(headers, "grpc-timeout", "5S");
  headers = with(headers, "x-digits-peer", "unix:forged");
  headers = with(headers, "x-digits-peer-identity", "CN=root");
  headers = with(headers, "x-digits-peer-more", "forged");
  headers = with(headers, "x-digits-chosen", "log");
  const auto id = talk.client.request(headers, framed("hello"));
  talk.exchange();
  const PassedOn& call = talk.log.calls.at(id);
  CHECK(call.headers[0].name == ":method");
  CHECK(call.header(":path") == "/inference.GRPCInferenceService/ModelReady");
  CHECK(call.header(":authority") == "localhost");
  CHECK(call.header("te") == "trailers");
  CHECK(call.header("x-request-id") == "abc");
  CHECK(call.header("grpc-timeout") == "5S");
  CHECK(call.header("x-digits-peer") == "ipv4:10.0.0.9:5000");
  CHECK(call.header("x-digits-peer-identity") == "CN=ada, O=a%25b");
  CHECK(call.header("x-digits-peer-more") == "(none)");
  CHECK(call.header("x-digits-chosen") == "(none)");
  CHECK(call.headers.size() == headers.size() - 2);
  CHECK(call.body == framed("hello"));
  CHECK(call.ended);
}

TEST_CASE("A response is passed back with its headers, messages and trailers") {
  Talk talk;
  const auto id = talk.client.request(other_headers(), framed("hello"), false);
  talk.exchange();
  talk.connection->upstream_headers(id, {{":status", "200"}, {"x-first", "1"}}, false);
  talk.connection->upstream_data(id, "one");
  talk.exchange();
  CHECK(talk.got(id).headers == Fields{{":status", "200"}, {"x-first", "1"}});
  CHECK(talk.got(id).body == "one");
  talk.client.go_on(id, framed("more"));
  talk.exchange();
  CHECK(talk.log.calls.at(id).body == framed("hello") + framed("more"));
  talk.connection->upstream_data(id, "two");
  talk.connection->upstream_trailers(id, {{"grpc-status", "0"}, {"x-last", "2"}});
  talk.exchange();
  CHECK(talk.got(id).body == "onetwo");
  CHECK(talk.got(id).trailers == Fields{{"grpc-status", "0"}, {"x-last", "2"}});
  CHECK(talk.got(id).ended);
  CHECK(talk.log.calls.at(id).taken == 6);
  CHECK(!talk.log.calls.at(id).reset);
}

TEST_CASE("A response that ends without trailers, or before the request does, is passed back") {
  Talk talk;
  const auto plain = talk.client.request(other_headers(), framed(""));
  const auto early = talk.client.request(other_headers(), framed(""), false);
  talk.exchange();
  talk.connection->upstream_headers(plain, {{":status", "404"}}, false);
  talk.connection->upstream_data(plain, "nothing");
  talk.connection->upstream_trailers(plain, {});
  talk.connection->upstream_headers(early, {{":status", "200"}, {"grpc-status", "12"}}, true);
  talk.exchange();
  CHECK(talk.got(plain).body == "nothing");
  CHECK(talk.got(plain).ended);
  CHECK(status_of(talk.got(early)) == "12");
  CHECK(talk.got(early).reset == NGHTTP2_NO_ERROR);
  CHECK(talk.log.calls.at(early).reset.has_value());
}

TEST_CASE("What the lane does not take of ModelInfer is passed on as it came") {
  Talk talk;
  const std::string compressed = std::string(1, '\1') + frame_prefix(3).substr(1) + "abc";
  const std::string two = framed(times_request({1.0f})) + framed("more");
  const std::string parts[] = {compressed, two, "", "abc", frame_prefix(9) + "abc"};
  for (const std::string& body : parts) {
    CAPTURE(body);
    const auto id = talk.client.request(infer_headers(), body);
    talk.exchange();
    CHECK(talk.log.calls.at(id).body == body);
    CHECK(talk.log.calls.at(id).ended);
  }
  const Headers odd[] = {with(infer_headers(), "grpc-encoding", "gzip"),
                         with(infer_headers(), "content-type", "application/grpc+json"),
                         with(infer_headers(), "grpc-timeout", "soon")};
  for (const Headers& headers : odd) {
    const auto id = talk.client.infer(times_request({1.0f}), headers);
    talk.exchange();
    CHECK(talk.log.calls.at(id).body == framed(times_request({1.0f})));
    CHECK(talk.log.calls.at(id).ended);
  }
  CHECK(talk.log.connections == 1);
}

TEST_CASE("What the service leaves is passed on with the time that is left") {
  Talk talk;
  const std::string body = framed(times_request({1.0f}, "unknown"));
  const Headers headers = with(infer_headers(), "grpc-timeout", "2S");
  const auto id = talk.client.request(headers, body.substr(0, 10), false);
  talk.exchange();
  talk.now += 0.5;
  talk.client.go_on(id, body.substr(10));
  talk.exchange();
  CHECK(talk.log.calls.at(id).body == body);
  CHECK(talk.log.calls.at(id).header("grpc-timeout") == "1500000u");
}

TEST_CASE("A client's window opens as the upstream takes what it sent") {
  Talk talk;
  talk.log.takes = false;
  const std::string body(std::size_t{3} << 20, 'x');
  const auto id = talk.client.request(other_headers(), body);
  talk.exchange();
  const std::size_t window = talk.log.calls.at(id).body.size();
  CHECK(window == std::size_t{1} << 20);
  talk.connection->upstream_taken(id, window);
  talk.exchange();
  CHECK(talk.log.calls.at(id).body.size() == 2 * window);
  talk.log.takes = true;
  talk.connection->upstream_taken(id, window);
  talk.exchange();
  CHECK(talk.log.calls.at(id).body == body);
}

TEST_CASE("Streams that were given up leave the connection's window as it was") {
  Limits limits;
  limits.max_buffered_bytes = std::size_t{2} << 20;
  Talk talk(limits);
  talk.log.takes = false;
  for (int i = 0; i < 5; ++i) {
    const std::string body(std::size_t{1} << 20, 'x');
    const auto id = talk.client.request(other_headers(), body, false);
    talk.exchange();
    CHECK(talk.client.unsent(id) == 0);
    talk.client.reset(id);
    talk.exchange();
  }
  const auto id = talk.client.infer(times_request({1.0f}));
  talk.exchange();
  talk.answer();
  CHECK(status_of(talk.got(id)) == "0");
}

TEST_CASE("The upstream hears how much of a response the client has room for") {
  Http2Client::Options options;
  options.opens_windows = false;
  options.window = 1000;
  Talk talk({}, options);
  const auto id = talk.client.request(other_headers(), framed(""));
  talk.exchange();
  talk.connection->upstream_headers(id, {{":status", "200"}}, false);
  talk.connection->upstream_data(id, std::string(5000, 'x'));
  talk.exchange();
  CHECK(talk.log.calls.at(id).taken == 1000);
  nghttp2_session_consume(talk.client.get(), id, 1000);
  talk.exchange();
  CHECK(talk.log.calls.at(id).taken == 2000);
  talk.client.reset(id);
  talk.exchange();
  CHECK(talk.log.calls.at(id).reset == NGHTTP2_CANCEL);
}

TEST_CASE("A reset of the upstream reaches the client, and one of the client the upstream") {
  Talk talk;
  const auto first = talk.client.request(other_headers(), framed(""));
  const auto second = talk.client.request(other_headers(), framed(""));
  talk.exchange();
  talk.connection->upstream_reset(first, NGHTTP2_INTERNAL_ERROR);
  talk.client.reset(second);
  talk.exchange();
  CHECK(talk.got(first).reset == NGHTTP2_INTERNAL_ERROR);
  CHECK(talk.log.calls.at(second).reset == NGHTTP2_CANCEL);
  talk.connection->upstream_headers(second, {{":status", "200"}}, true);  // too late
  talk.exchange();
  CHECK(!talk.got(second).headers_came);
}

TEST_CASE("When the upstream is lost its calls are unavailable, and the next has another") {
  Talk talk;
  const auto waiting = talk.client.request(other_headers(), framed(""));
  const auto begun = talk.client.request(other_headers(), framed(""), false);
  talk.exchange();
  talk.connection->upstream_headers(begun, {{":status", "200"}}, false);
  talk.connection->upstream_data(begun, "part");
  talk.exchange();
  talk.connection->upstream_lost();
  talk.exchange();
  CHECK(status_of(talk.got(waiting)) == "14");
  CHECK(talk.got(begun).body == "part");
  CHECK(talk.got(begun).trailers.at("grpc-status") == "14");
  CHECK(talk.got(begun).reset == NGHTTP2_NO_ERROR);
  const auto next = talk.client.request(other_headers(), framed("again"));
  talk.exchange();
  CHECK(talk.log.connections == 2);
  CHECK(talk.log.calls.at(next).body == framed("again"));
}

TEST_CASE("Where there is no upstream, its calls are unavailable") {
  Serving serving;
  Http2Client client;
  Connection connection(1, {"ipv4:1.2.3.4:5", ""}, {}, *serving.service,
                        [](Downstream&) { return nullptr; }, 0);
  const auto id = client.request(other_headers(), framed(""));
  const std::string bytes = client.output();
  connection.receive(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size(), 0);
  std::string out;
  connection.send(out, 1 << 20);
  client.input(out);
  CHECK(status_of(client[id]) == "14");
}

TEST_CASE("A call whose client goes away is cancelled, and its answer ignored") {
  Talk talk;
  talk.serving.executor->hold();
  const auto running = talk.client.infer(times_request({1.0f}));
  talk.exchange();
  talk.serving.executor->entered.acquire();
  const auto id = talk.client.infer(times_request({2.0f}));
  talk.exchange();
  talk.client.reset(id);
  talk.exchange();
  CHECK(talk.serving.service->in_flight() == 1);
  talk.connection->finish(id, Refusal{});
  talk.connection->finish(12345, Refusal{});
  talk.serving.executor->release();
  talk.answer();
  CHECK(!talk.got(id).headers_came);
  CHECK(status_of(talk.got(running)) == "0");
}

TEST_CASE("When a connection ends its calls are cancelled, here and upstream") {
  Talk talk;
  talk.serving.executor->hold();
  talk.client.infer(times_request({1.0f}));
  const auto other = talk.client.request(other_headers(), framed(""));
  talk.exchange();
  CHECK(talk.serving.service->in_flight() == 1);
  talk.connection.reset();
  CHECK(talk.serving.service->in_flight() == 0);
  CHECK(talk.log.calls.at(other).reset == NGHTTP2_CANCEL);
  talk.serving.executor->release();
}

TEST_CASE("A request of 16 MiB is received, whatever else goes on") {
  Talk talk;
  const auto large = talk.client.infer(large_request((std::size_t{4} << 20) - 100));
  const auto small = talk.client.infer(times_request({1.0f}));
  talk.exchange();
  talk.answer(2);
  CHECK(status_of(talk.got(large)) == "0");
  CHECK(talk.got(large).body.size() > std::size_t{15} << 20);
  CHECK(status_of(talk.got(small)) == "0");
}

TEST_CASE("More large requests at once than memory is meant for take turns") {
  Limits limits;
  limits.max_message_bytes = std::size_t{8} << 20;
  limits.max_buffered_bytes = std::size_t{20} << 20;
  Talk talk(limits);
  const std::string message = large_request(std::size_t{1} << 20);
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 8; ++i) ids.push_back(talk.client.infer(message));
  talk.exchange();
  talk.answer(8);
  for (const auto id : ids) CHECK(status_of(talk.got(id)) == "0");
}

TEST_CASE("Requests that are never whole do not take more memory than they may") {
  Limits limits;
  limits.max_buffered_bytes = std::size_t{3} << 20;
  Talk talk(limits);
  const std::string part = frame_prefix(std::size_t{8} << 20) + std::string(1 << 20, 'x');
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 8; ++i) ids.push_back(talk.client.request(infer_headers(), part, false));
  talk.exchange();
  int refused = 0;
  for (const auto id : ids) refused += status_of(talk.got(id)) == "8";
  CHECK(refused == 6);
}

TEST_CASE("A request of which not all has come at its deadline is refused") {
  Talk talk;
  const Headers headers = with(infer_headers(), "grpc-timeout", "100m");
  const auto id = talk.client.request(headers, frame_prefix(10), false);
  talk.exchange();
  talk.pass(0.05);
  talk.exchange();
  CHECK(!talk.got(id).headers_came);
  talk.pass(0.06);
  talk.exchange();
  CHECK(status_of(talk.got(id)) == "4");
  CHECK(message_of(talk.got(id)) == "Deadline Exceeded");
}

TEST_CASE("A message that is whole is answered, whether or not it was said to be the last") {
  Talk talk;
  const auto id = talk.client.request(infer_headers(), framed(times_request({2.0f})), false);
  talk.exchange();
  talk.answer();
  CHECK(last_floats(talk.got(id).body, 1) == std::vector<float>{6.0f});
  CHECK(talk.got(id).ended);
  CHECK(talk.got(id).reset == NGHTTP2_NO_ERROR);
}

TEST_CASE("A message that is whole is passed on at once, and its end when it comes") {
  Talk talk;
  const std::string body = framed(times_request({2.0f}, "nobody"));
  const auto id = talk.client.request(infer_headers(), body, false);
  talk.exchange();
  CHECK(talk.log.calls[id].body == body);
  CHECK(!talk.log.calls[id].ended);
  talk.client.go_on(id, "");
  talk.exchange();
  CHECK(talk.log.calls[id].body == body);
  CHECK(talk.log.calls[id].ended);
}

TEST_CASE("An answer beyond the limit of messages is refused, and one of the limit is sent") {
  const std::string message = times_request({2.0f});
  Limits limits;
  for (const bool fits : {true, false}) {
    Talk talk(limits);
    const auto id = talk.client.infer(message);
    talk.exchange();
    talk.answer();
    CHECK(status_of(talk.got(id)) == (fits ? "0" : "8"));
    limits.max_message_bytes = talk.got(id).body.size() - 5 - 1;  // for the next
    if (fits) REQUIRE(limits.max_message_bytes >= message.size());
  }
}

TEST_CASE("Metadata may begin and end with spaces") {
  Talk talk;
  const auto id = talk.client.request(with(other_headers(), "x-note", "  mine "), framed(""));
  talk.exchange();
  CHECK(talk.log.calls[id].header("x-note") == "  mine ");
}

TEST_CASE("As many headers of a response are passed back as an upstream may send") {
  Talk talk;
  const auto id = talk.client.request(other_headers(), framed(""));
  talk.exchange();
  Headers headers{{":status", "200"}, {"grpc-status", "0"}};
  for (const char* name : {"a", "b", "c"}) headers.push_back({name, std::string(30'000, '~')});
  talk.connection->upstream_headers(id, headers, true);
  talk.exchange();
  CHECK(talk.got(id).ended);
  CHECK(talk.got(id).headers.at("c").size() == 30'000);
}

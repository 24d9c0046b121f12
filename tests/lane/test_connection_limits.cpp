// What a client may do of a connection, how often and how long. Each limit has a test that fails
// without it, and one in which nobody is harmed that keeps to it.
#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "abuse.h"
#include "talking.h"

using namespace lane;

namespace {

constexpr auto calm = NGHTTP2_ENHANCE_YOUR_CALM;

Headers compressed_headers() { return with(infer_headers(), "grpc-encoding", "gzip"); }

Headers other_headers() {
  return with(infer_headers(), ":path", "/inference.GRPCInferenceService/ModelStreamInfer");
}

// A frame as RFC 9113 4.1 has it.
std::string frame(std::uint8_t type, std::uint8_t flags, std::uint32_t stream,
                  const std::string& payload = {}) {
  std::string out;
  for (int shift = 16; shift >= 0; shift -= 8) {
    out.push_back(static_cast<char>(payload.size() >> shift));
  }
  out.push_back(static_cast<char>(type));
  out.push_back(static_cast<char>(flags));
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<char>(stream >> shift));
  return out + payload;
}

std::string repeated(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

// What the connection still says, and whether it is over then.
bool ends_with(Talk& talk, std::uint32_t error, const std::string& why) {
  talk.client.input(talk.heard());
  REQUIRE(!talk.client.goaways.empty());
  CHECK(talk.client.goaways.back().first == error);
  CHECK(talk.client.goaways.back().second == why);
  return talk.connection->finished();
}

}  // namespace

TEST_CASE("A bucket allows its burst, then its rate") {
  TokenBucket bucket(10, 3, 100);
  for (int i = 0; i < 3; ++i) CHECK(bucket.take(100));
  CHECK(!bucket.take(100));
  CHECK(bucket.take(100.11));
  CHECK(!bucket.take(100.11));
  for (int i = 0; i < 3; ++i) CHECK(bucket.take(200));
  CHECK(!bucket.take(200));
}

TEST_CASE("Pings that come too soon are strikes until something is answered") {
  PingStrikes strikes(5, 2);
  CHECK(strikes.ping(0));
  CHECK(strikes.ping(1));
  CHECK(strikes.ping(2));
  strikes.answered();
  CHECK(strikes.ping(3));
  CHECK(strikes.ping(9));
  CHECK(strikes.ping(10));
  CHECK(strikes.ping(11));
  CHECK(!strikes.ping(12));
}

TEST_CASE("Streams beyond the limit are refused") {
  Limits limits;
  limits.max_streams = 3;
  Talk talk(limits);
  talk.serving.executor->hold();
  // Before it has heard of the limit, as a client that does not care.
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 5; ++i) ids.push_back(talk.client.infer(times_request({1.0f})));
  talk.tell(talk.client.output());
  CHECK(talk.serving.service->in_flight() == 3);
  talk.exchange();
  CHECK(talk.got(ids[3]).reset == NGHTTP2_REFUSED_STREAM);
  CHECK(talk.got(ids[4]).reset == NGHTTP2_REFUSED_STREAM);
  talk.serving.executor->release();
  talk.answer(3);
  CHECK(talk.got(ids[0]).ended);
}

TEST_CASE("Who does not begin to talk HTTP/2 in time is gone") {
  Talk talk;
  talk.heard();
  talk.pass(19.9);
  CHECK(!talk.connection->finished());
  talk.pass(0.2);
  CHECK(talk.connection->finished());
}

TEST_CASE("Who does not talk HTTP/2 at all is gone at once") {
  Talk talk;
  CHECK(!talk.tell("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"));
  CHECK(talk.connection->finished());
}

TEST_CASE("A silent peer is asked whether it lives, and gone if it does not say so") {
  Talk talk;
  talk.exchange();
  talk.pass(59);
  talk.exchange();
  CHECK(talk.client.pings == 0);
  talk.pass(2);
  talk.heard();  // the ping is lost
  talk.pass(18);
  CHECK(!talk.connection->finished());
  talk.pass(3);
  CHECK(talk.connection->finished());
}

TEST_CASE("A silent peer that lives stays") {
  Talk talk;
  talk.exchange();
  for (int i = 1; i <= 5; ++i) {
    talk.pass(61);
    talk.exchange();
    CHECK(talk.client.pings == i);
  }
  CHECK(!talk.connection->finished());
}

TEST_CASE("Too many pings end a connection, as gRPC has it") {
  Talk talk;
  talk.exchange();
  for (int i = 0; i < 3; ++i) {
    talk.client.ping();
    CHECK(talk.exchange());
    CHECK(talk.client.ping_answers == i + 1);
  }
  talk.client.ping();
  CHECK(!talk.tell(talk.client.output()));
  CHECK(ends_with(talk, calm, "too_many_pings"));
}

TEST_CASE("Pings between answers, and those that keep their distance, are welcome") {
  Talk talk;
  for (int i = 0; i < 20; ++i) {
    const auto id = talk.client.infer(times_request({1.0f}));
    talk.client.ping();
    talk.exchange();
    talk.answer();
    CHECK(talk.got(id).ended);
  }
  for (int i = 0; i < 20; ++i) {
    talk.pass(5.1);
    talk.client.ping();
    CHECK(talk.exchange());
  }
  CHECK(talk.client.goaways.empty());
}

TEST_CASE("A connection without calls ends after the idle time, and none with a call") {
  Limits limits;
  limits.idle_timeout = 100;
  limits.keepalive_time = 0;
  Talk talk(limits);
  const auto id = talk.client.request(other_headers(), "");
  talk.exchange();
  for (int i = 0; i < 10; ++i) {
    talk.pass(50);
    talk.exchange();
  }
  CHECK(talk.client.goaways.empty());
  talk.client.reset(id);
  talk.exchange();
  talk.pass(50);
  talk.exchange();
  CHECK(talk.client.goaways.empty());
  talk.pass(51);
  talk.exchange();
  CHECK(talk.client.goaways.size() == 1);
  talk.pass(1.1);  // nghttp2's client reads no more without a call, and answers no ping
  talk.exchange();
  CHECK(talk.connection->finished());
}

TEST_CASE("A request that does not go on is reset, and one that does is not") {
  Talk talk;
  const std::string begun = frame_prefix(1'000'000) + "a";
  const auto slow = talk.client.request(infer_headers(), begun, false);
  const auto stuck = talk.client.request(infer_headers(), begun, false);
  talk.exchange();
  for (int i = 0; i < 4; ++i) {
    talk.pass(20);
    talk.client.go_on(slow, std::string(10'000, 'b'), false);
    talk.exchange();
  }
  CHECK(talk.got(stuck).reset == NGHTTP2_CANCEL);
  CHECK(!talk.got(slow).reset);
}

TEST_CASE("A request that comes in drops is reset, also among others that go on") {
  Talk talk;
  const std::string begun = frame_prefix(1'000'000) + "a";
  const auto drops = talk.client.request(infer_headers(), begun, false);
  const auto almost = talk.client.request(infer_headers(), begun, false);
  const auto enough = talk.client.request(infer_headers(), begun, false);
  talk.exchange();
  const auto goes_on = [&](std::int32_t id, const std::string& bytes) {
    if (!talk.got(id).reset) talk.client.go_on(id, bytes, false);
  };
  const auto seconds = [&](int count) {
    for (int i = 0; i < count; ++i) {
      talk.pass(1);
      goes_on(drops, "b");
      goes_on(almost, std::string(400, 'b'));  // a fifth too little
      goes_on(enough, std::string(501, 'b'));
      talk.exchange();
    }
  };
  seconds(29);
  CHECK(!talk.got(drops).reset);
  seconds(3);
  CHECK(talk.got(drops).reset == NGHTTP2_CANCEL);
  seconds(110);
  CHECK(!talk.got(almost).reset);
  seconds(15);
  CHECK(talk.got(almost).reset == NGHTTP2_CANCEL);
  seconds(300);
  CHECK(!talk.got(enough).reset);
}

namespace {

// Many connections of one service; each client has begun a request.
struct Crowd {
  Crowd(const Limits& limits, int count) : limits(limits) {
    for (int i = 0; i < count; ++i) connect();
  }

  struct Member {
    explicit Member(const Http2Client::Options& options) : client(options) {}
    Http2Client client;
    std::unique_ptr<Connection> connection;
  };
  Member& connect(const Http2Client::Options& options = {}) {
    auto member = std::make_unique<Member>(options);
    member->connection = std::make_unique<Connection>(
        members.size(), Peer{"ipv4:10.0.0.9:5000", ""}, limits, *serving.service, nullptr, 1000);
    members.push_back(std::move(member));
    return *members.back();
  }
  // What both have to say.
  void exchange(Member& member) {
    for (int quiet = 0; quiet < 2;) {
      const std::string up = member.client.output();
      const auto* data = reinterpret_cast<const std::uint8_t*>(up.data());
      // In pieces, as a socket is read.
      for (std::size_t at = 0; at < up.size(); at += 65536)
        member.connection->receive(data + at, std::min<std::size_t>(65536, up.size() - at), 1000);
      std::string down;
      member.connection->send(down, std::size_t{1} << 30);
      member.client.input(down);
      quiet = up.empty() && down.empty() ? quiet + 1 : 0;
      most = std::max(most, serving.service->reserved);
    }
    serving.service->wake();
  }
  bool answered(Member& member, std::int32_t id) {
    exchange(member);
    if (member.client[id].ended) return !member.client[id].headers.count("grpc-status");
    Finished finished = serving.outbox->take();
    member.connection->finish(id, std::move(finished.result));
    exchange(member);
    return member.client[id].trailers.at("grpc-status") == "0";
  }

  // A request is let in, and its answer is on its way.
  bool let_in(Member& member, const std::string& message) {
    const auto id = member.client.infer(message);
    exchange(member);
    if (member.client[id].ended) return false;
    Finished finished = serving.outbox->take();
    member.connection->finish(id, std::move(finished.result));
    exchange(member);
    return true;
  }

  const Limits limits;
  Serving serving{100000};
  std::size_t most = 0;  // bytes that were reserved at once
  std::vector<std::unique_ptr<Member>> members;
};

}  // namespace

TEST_CASE("All connections together receive no more than is allowed, and small ones go on") {
  Limits limits;
  limits.max_buffered_by_all = 8 << 20;
  Crowd crowd(limits, 100);
  const std::size_t& reserved = crowd.serving.service->reserved;
  const std::string large = times_request(std::vector<float>(100'000, 1.0f));
  const std::string framed = frame_prefix(large.size()) + large;
  std::vector<std::int32_t> ids;
  for (auto& member : crowd.members) {
    const std::string half = framed.substr(0, framed.size() / 2);
    ids.push_back(member->client.request(infer_headers(), half, false));
    crowd.exchange(*member);
  }
  const std::size_t fit = limits.max_buffered_by_all / 4 * 3 / large.size();
  CHECK(reserved == fit * large.size());
  // What is small may have the rest.
  const std::string claim = frame_prefix(64 * 1024) + "x";
  std::size_t first = crowd.members.size();
  for (bool refused = false; !refused;) {
    auto& member = crowd.connect();
    const auto id = member.client.request(infer_headers(), claim, false);
    crowd.exchange(member);
    refused = member.client[id].ended;
    if (refused) CHECK(std::stoi(member.client[id].headers.at("grpc-retry-pushback-ms")) >= 1000);
  }
  CHECK(reserved > limits.max_buffered_by_all - 64 * 1024);
  auto& small = crowd.connect();
  CHECK(crowd.answered(small, small.client.infer(times_request({1.0f}))));  // it comes at once
  while (crowd.members[first].get() != &small) crowd.members[first++]->connection.reset();
  CHECK(reserved == fit * large.size());
  std::size_t refused = 0;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    auto& member = *crowd.members[i];
    if (member.client[ids[i]].ended) {
      CHECK(member.client[ids[i]].headers.at("grpc-status") == "8");
      CHECK(std::stoi(member.client[ids[i]].headers.at("grpc-retry-pushback-ms")) >= 1000);
      ++refused;
      continue;
    }
    member.client.go_on(ids[i], framed.substr(framed.size() / 2));
    CHECK(crowd.answered(member, ids[i]));
  }
  CHECK(refused == 100 - fit);
  CHECK(crowd.most <= limits.max_buffered_by_all);
  CHECK(reserved == 0);
  CHECK(crowd.answered(small, small.client.infer(large)));
}

TEST_CASE("One connection claims no more than it leaves to all others") {
  Limits limits;
  limits.max_buffered_by_all = 8 << 20;
  Crowd crowd(limits, 1);
  auto& greedy = *crowd.members.front();
  const std::string claim = frame_prefix(64 * 1024) + "x";
  for (int i = 0; i < 200; ++i) greedy.client.request(infer_headers(), claim, false);
  crowd.exchange(greedy);
  CHECK(crowd.serving.service->reserved == limits.max_buffered_by_all / 2);
  greedy.connection.reset();
  CHECK(crowd.serving.service->reserved == 0);
}

TEST_CASE("A request that has begun goes on, whatever others have begun") {
  Limits limits;
  limits.max_buffered_by_all = 8 << 20;
  Crowd crowd(limits, 3);
  const std::string large = times_request(std::vector<float>(750'000, 1.0f));  // of many windows
  const std::string framed = frame_prefix(large.size()) + large;
  std::vector<std::int32_t> ids;
  for (auto& member : crowd.members) {
    ids.push_back(member->client.request(infer_headers(), framed.substr(0, 10), false));
    crowd.exchange(*member);
  }
  CHECK(crowd.members[2]->client[ids[2]].headers.at("grpc-status") == "8");
  for (const std::size_t i : {0, 1}) {
    auto& member = *crowd.members[i];
    member.client.go_on(ids[i], framed.substr(10, framed.size() - 20), false);
    crowd.exchange(member);
    CHECK(member.client.unsent(ids[i]) == 0);
  }
  for (const std::size_t i : {0, 1}) {
    auto& member = *crowd.members[i];
    member.client.go_on(ids[i], framed.substr(framed.size() - 10));
    CHECK(crowd.answered(member, ids[i]));
  }
}

TEST_CASE("What was reserved is free again, however a request ends") {
  Talk talk;
  const std::size_t& reserved = talk.serving.service->reserved;
  const std::string message = times_request(std::vector<float>(300, 1.0f));
  const std::string framed = frame_prefix(message.size()) + message;
  const auto begin = [&](const Headers& headers = infer_headers()) {
    CHECK(reserved == 0);
    const auto id = talk.client.request(headers, framed.substr(0, 10), false);
    talk.exchange();
    CHECK(reserved == message.size());
    return id;
  };
  talk.client.go_on(begin(), framed.substr(10));
  talk.exchange();
  CHECK(reserved == 0);  // it is the service's
  talk.answer();
  talk.client.reset(begin());
  talk.exchange();
  talk.client.go_on(begin(), "not all of it");  // passed on
  talk.exchange();
  talk.client.go_on(begin(), framed + "and more", false);  // likewise
  talk.exchange();
  begin(with(infer_headers(), "grpc-timeout", "100m"));
  talk.pass(0.2);
  begin();
  talk.pass(31);
  begin();  // its connection ends
}

TEST_CASE("What is passed on and not taken is not reserved: its windows bound it") {
  Limits limits;
  limits.max_buffered_by_all = 1 << 20;
  Talk talk(limits);
  talk.log.takes = false;
  const std::string body(std::size_t{1} << 20, 'x');
  for (int i = 0; i < 3; ++i) {
    const auto id = talk.client.request(other_headers(), body, false);
    talk.exchange();
    CHECK(talk.log.calls.at(id).body == body);
  }
  CHECK(talk.serving.service->reserved == 0);
}

TEST_CASE("What a connection has reserved is nobody's when it is gone") {
  Crowd crowd({}, 3);
  for (auto& member : crowd.members) {
    member->client.request(infer_headers(), frame_prefix(1000) + std::string(500, 'x'), false);
    crowd.exchange(*member);
  }
  CHECK(crowd.serving.service->reserved == 3 * 1000);
  crowd.members.clear();
  CHECK(crowd.serving.service->reserved == 0);
}

TEST_CASE("While memory is short, the next goes on when one is passed on or reset") {
  Limits limits;
  limits.max_buffered_bytes = std::size_t{4} << 20;
  const std::string message = times_request(std::vector<float>(300'000, 1.0f));  // 1.2 MB
  const std::string framed = frame_prefix(message.size()) + message;
  for (const bool resets : {false, true}) {
    CAPTURE(resets);
    Talk talk(limits);
    talk.log.takes = false;
    const std::string part = frame_prefix(std::size_t{8} << 20) + std::string(2'100'000, 'x');
    const auto favoured = talk.client.request(infer_headers(), part, false);
    talk.exchange();
    CHECK(talk.client.unsent(favoured) == 0);
    const auto gives_up = talk.client.request(infer_headers(), framed.substr(0, 100), false);
    const auto held = talk.client.request(infer_headers(), framed);
    talk.exchange();
    CHECK(talk.client.unsent(held) > 0);
    talk.client.reset(gives_up);
    talk.exchange();
    CHECK(talk.client.unsent(held) > 0);
    if (resets) {
      talk.client.reset(favoured);
    } else {
      talk.client.go_on(favoured, "");  // not all of it
    }
    talk.exchange();
    talk.answer();
    CHECK(talk.got(held).ended);
  }
}

TEST_CASE("Requests that end one after the other are looked at together") {
  const Headers soon = with(infer_headers(), "grpc-timeout", "10S");
  for (const Headers& headers : {infer_headers(), soon}) {
    Talk talk;
    for (int i = 0; i < 200; ++i) {
      talk.client.request(headers, frame_prefix(1000) + "a", false);
      talk.exchange();
      talk.pass(0.007);
    }
    CHECK(talk.serving.service->reserved == 200 * 1000);
    int ticks = 0;
    for (const Seconds end = talk.now + 30.1; talk.now < end; ++ticks) {
      talk.now = std::min(end, std::max(talk.now + 1e-3, talk.connection->tick(talk.now)));
    }
    talk.connection->tick(talk.now);
    CHECK(talk.serving.service->reserved == 0);
    CHECK(ticks < 30);  // of 1.4 s
  }
}

TEST_CASE("A ModelInfer call that is passed on does not stall either, but streams may be silent") {
  Talk talk;
  const auto stuck = talk.client.request(compressed_headers(), "a", false);
  const auto silent = talk.client.request(other_headers(), "a", false);
  talk.exchange();
  talk.pass(31);
  talk.exchange();
  CHECK(talk.got(stuck).reset == NGHTTP2_CANCEL);
  CHECK(talk.log.calls.at(stuck).reset.has_value());
  CHECK(!talk.got(silent).reset);
}

TEST_CASE("A request whose window is shut by us is not reset") {
  Talk talk;
  talk.log.takes = false;
  const auto id = talk.client.request(compressed_headers(), std::string(std::size_t{2} << 20, 'x'));
  talk.exchange();
  talk.pass(50);
  talk.exchange();
  CHECK(!talk.got(id).reset);
  CHECK(!talk.log.calls.at(id).ended);
}

TEST_CASE("A peer that opens no window for its answer is gone after a while") {
  Http2Client::Options options;
  options.window = 0;
  Talk talk({}, options);
  talk.client.infer(times_request({1.0f}));
  talk.exchange();
  talk.answer();
  talk.pass(29);
  talk.exchange();
  CHECK(!talk.connection->finished());
  talk.pass(2);
  CHECK(talk.connection->finished());
}

TEST_CASE("A peer that takes no answers is not given ever more of them") {
  Http2Client::Options options;
  options.window = 0;
  Limits limits;
  limits.max_buffered_bytes = 100'000;
  Talk talk(limits, options);
  const std::string message = times_request(std::vector<float>(10'000, 1.0f));
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 3; ++i) {
    ids.push_back(talk.client.infer(message));
    talk.exchange();
    talk.answer();
  }
  const auto refused = talk.client.infer(message);
  talk.exchange();
  CHECK(talk.got(refused).headers.at("grpc-status") == "8");
  for (const auto id : ids) talk.client.reset(id);
  const auto taken = talk.client.infer(message);
  talk.exchange();
  talk.answer();
  CHECK(talk.got(taken).headers.count("grpc-status") == 0);
}

namespace {

// How long a client is there, or takes to read an answer of 40 kB, `bytes` a second.
Seconds reading(std::uint32_t bytes, const std::function<std::int32_t(Talk&)>& ask) {
  Http2Client::Options options;
  options.window = bytes;
  options.opens_windows = false;
  Talk talk({}, options);
  const std::int32_t id = ask(talk);
  const Seconds began = talk.now;
  while (!talk.connection->finished() && !talk.got(id).ended) {
    talk.pass(1);
    nghttp2_session_consume(talk.client.get(), id, bytes);
    talk.exchange();
  }
  return talk.now - began;
}

std::int32_t ask_for_40_kb(Talk& talk) {
  const auto id = talk.client.infer(times_request(std::vector<float>(10'000, 1.0f)));
  talk.exchange();
  talk.answer();
  return id;
}

std::int32_t ask_grpcio_for_40_kb(Talk& talk) {
  const auto id = talk.client.infer("compressed", compressed_headers());
  talk.exchange();
  talk.connection->upstream_headers(id, {{":status", "200"}}, false);
  talk.connection->upstream_data(id, std::string(40'000, 'x'));
  talk.connection->upstream_trailers(id, {{"grpc-status", "0"}});
  talk.exchange();
  return id;
}

}  // namespace

TEST_CASE("A peer that reads its answer in drops is gone after a while, and a slow one is not") {
  for (const auto& ask : {ask_for_40_kb, ask_grpcio_for_40_kb}) {
    CHECK(reading(1, ask) == doctest::Approx(31).epsilon(0.05));
    CHECK(reading(250, ask) == doctest::Approx(60).epsilon(0.05));
    CHECK(reading(510, ask) == doctest::Approx(40'000 / 510.0).epsilon(0.05));  // all of it
  }
}

TEST_CASE("All connections leave no more unread than is allowed, and who reads finds room") {
  Limits limits;
  limits.max_buffered_by_all = 400'000;
  Crowd crowd(limits, 1);
  Crowd::Member& reader = *crowd.members.front();
  Http2Client::Options blind;
  blind.window = 0;
  const std::string message = times_request(std::vector<float>(10'000, 1.0f));  // 40 kB
  const auto fill = [&](bool one_each) {
    Crowd::Member* member = &crowd.connect(blind);
    int count = 0;
    for (; crowd.let_in(*member, message); ++count) {
      if (one_each) member = &crowd.connect(blind);
    }
    return count;
  };
  CHECK(fill(false) == 5);
  CHECK(crowd.let_in(reader, message));
  CHECK(fill(true) == 5);
  CHECK(!crowd.let_in(reader, message));
  crowd.members.pop_back();  // had nothing
  crowd.members.pop_back();
  CHECK(crowd.let_in(reader, message));
  crowd.members.clear();
  CHECK(crowd.serving.service->unsent == 0);
}

TEST_CASE("What is passed on has room until it is answered, whether or not the client reads it") {
  Http2Client::Options options;
  options.window = 0;
  Talk talk({}, options, 1);
  const auto refused = [&] {
    const auto id = talk.client.request(infer_headers(), "", false);
    talk.exchange();
    const bool over = talk.got(id).ended;
    if (!over) talk.client.reset(id);
    talk.exchange();
    return over;
  };
  const auto ask = [&] {
    const auto id = talk.client.infer("compressed", compressed_headers());
    talk.exchange();
    CHECK(refused());
    talk.connection->upstream_headers(id, {{":status", "200"}}, false);
    talk.connection->upstream_data(id, "answer");
    talk.exchange();
    CHECK(refused());
    return id;
  };
  talk.connection->upstream_trailers(ask(), {{"grpc-status", "0"}});
  CHECK(!refused());
  talk.connection->upstream_reset(ask(), NGHTTP2_CANCEL);
  CHECK(!refused());
  ask();
  talk.connection->upstream_lost();
  CHECK(!refused());
}

TEST_CASE("A peer that opens no window for what grpcio answers is gone after a while") {
  enum class Is { whole, partly_there, lost };
  for (const Is is : {Is::whole, Is::partly_there, Is::lost}) {
    for (const std::uint32_t window : {0u, 6u}) {
      CAPTURE(static_cast<int>(is));
      CAPTURE(window);
      Http2Client::Options options;
      options.window = window;
      options.opens_windows = false;
      Talk talk({}, options);
      const auto id = talk.client.infer("compressed", compressed_headers());
      talk.exchange();
      talk.connection->upstream_headers(id, {{":status", "200"}}, false);
      talk.connection->upstream_data(id, "answer");
      talk.exchange();
      if (is == Is::whole) talk.connection->upstream_trailers(id, {{"grpc-status", "0"}});
      if (is == Is::lost) talk.connection->upstream_lost();
      talk.exchange();
      CHECK(!talk.got(id).ended);
      talk.pass(29);
      talk.exchange();
      CHECK(!talk.connection->finished());
      talk.pass(2);
      // What is there has left where the window was just large enough, and the rest is grpcio's.
      CHECK(talk.connection->finished() == !(is == Is::partly_there && window == 6));
    }
  }
}

TEST_CASE("Whoever reads no stream for a while, or waits for grpcio, stays") {
  Http2Client::Options options;
  options.window = 6;
  options.opens_windows = false;
  Talk talk({}, options);
  const auto stream = talk.client.request(other_headers(), "a");
  const auto call = talk.client.infer("compressed", compressed_headers());
  talk.exchange();
  talk.connection->upstream_headers(stream, {{":status", "200"}}, false);
  talk.connection->upstream_data(stream, "answers");
  talk.connection->upstream_headers(call, {{":status", "200"}}, false);
  talk.connection->upstream_data(call, "answer");
  talk.exchange();
  for (int i = 0; i < 10; ++i) {
    talk.pass(20);
    talk.exchange();
  }
  CHECK(!talk.connection->finished());
  nghttp2_session_consume(talk.client.get(), call, 6);
  talk.connection->upstream_trailers(call, {{"grpc-status", "0"}});
  talk.exchange();
  CHECK(talk.got(call).ended);
}

TEST_CASE("A peer whose socket takes nothing is gone after a while") {
  Talk talk;
  talk.exchange();
  talk.client.infer(message_field(1, "times"));  // refused
  talk.tell(talk.client.output());
  talk.pass(29);
  CHECK(!talk.connection->finished());
  talk.pass(2);
  CHECK(talk.connection->finished());
}

TEST_CASE("Calls that are begun and reset again and again end a connection") {
  Limits limits;
  limits.resets_burst = 50;
  limits.resets_per_second = 10;
  Talk talk(limits);
  talk.serving.executor->hold();
  talk.exchange();
  int rounds = 0;
  for (bool reads = true; reads && rounds < 100; ++rounds) {
    const auto id = talk.client.infer(times_request({1.0f}));
    std::string bytes = talk.client.output();
    talk.client.reset(id);
    reads = talk.tell(bytes + talk.client.output());
  }
  CHECK(rounds == 51);
  CHECK(ends_with(talk, calm, "too_many_resets"));
  CHECK(talk.serving.service->in_flight() == 0);
  talk.serving.executor->release();
}

TEST_CASE("Calls that are reset now and then are welcome") {
  Limits limits;
  limits.resets_burst = 5;
  limits.resets_per_second = 10;
  Talk talk(limits);
  for (int i = 0; i < 100; ++i) {
    const auto id = talk.client.request(other_headers(), "");
    talk.exchange();
    talk.client.reset(id);
    talk.pass(0.2);
    CHECK(talk.exchange());
  }
}

TEST_CASE("Calls that a client has us reset end a connection, too") {
  Limits limits;
  limits.resets_burst = 20;
  Talk talk(limits);
  talk.exchange();
  int rounds = 0;
  for (bool reads = true; reads && rounds < 50; ++rounds) {
    const auto id = talk.client.request(other_headers(), "", false);
    // A window of 2^31 - 1 and one more: a flow-control error of the stream (RFC 9113 6.9.1).
    const std::string increment = std::string("\x7f\xff\xff\xff", 4);
    reads = talk.tell(talk.client.output() +
                      frame(NGHTTP2_WINDOW_UPDATE, 0, static_cast<std::uint32_t>(id), increment));
    if (reads) talk.client.input(talk.heard());
    if (talk.client.goaways.size() > 0) break;
  }
  CHECK(rounds == 20);
  CHECK(talk.client.goaways.back().first == calm);
  CHECK(talk.connection->finished());
}

TEST_CASE("CONTINUATION frames without end end a connection") {
  Talk talk;
  talk.exchange();
  std::string flood = frame(NGHTTP2_HEADERS, 0, 1, "\x82");
  flood += repeated(frame(NGHTTP2_CONTINUATION, 0, 1), 1000);
  CHECK(!talk.tell(flood));
  talk.heard();
  CHECK(talk.connection->finished());
}

TEST_CASE("Empty DATA frames, and SETTINGS, without end end a connection") {
  const std::string padding("\x02\0\0", 3);
  const std::string kinds[] = {frame(NGHTTP2_DATA, 0, 1), frame(NGHTTP2_SETTINGS, 0, 0),
                               frame(NGHTTP2_DATA, NGHTTP2_FLAG_PADDED, 1, padding)};
  for (const std::string& kind : kinds) {
    CAPTURE(static_cast<int>(kind[3]));
    Talk talk;
    talk.client.request(other_headers(), "", false);
    talk.exchange();
    std::string said;
    int rounds = 0;
    for (bool reads = true; reads && rounds < 30; ++rounds) {
      reads = talk.tell(repeated(kind, 100));
      said = talk.heard();
    }
    CHECK(rounds <= 11);
    CHECK(said.find("empty_frames") != std::string::npos);
    CHECK(talk.connection->finished());
  }
}

TEST_CASE("A client that reads nothing cannot have acknowledgements pile up") {
  Limits limits;
  limits.max_ping_strikes = std::numeric_limits<int>::max();
  Talk talk(limits);
  talk.exchange();
  bool reads = true;
  int rounds = 0;
  for (; reads && rounds < 30; ++rounds) {
    reads = talk.tell(repeated(frame(NGHTTP2_PING, 0, 0, std::string(8, 'x')), 100));
  }
  CHECK(rounds <= 11);
  CHECK(talk.connection->finished());
}

TEST_CASE("A connection says when more waits to be sent than it should read") {
  Limits limits;
  limits.max_streams = 20000;
  Talk talk(limits);
  talk.exchange();
  for (int i = 0; i < 9000; ++i) talk.client.infer(message_field(1, "times"));  // refused
  talk.tell(talk.client.output());
  CHECK(talk.connection->congested());
  talk.heard();
  CHECK(!talk.connection->congested());
}

TEST_CASE("A connection that drains lets calls in flight, and on their way, finish") {
  Talk talk;
  const auto first = talk.client.infer(times_request({1.0f}));
  talk.exchange();
  talk.connection->drain();
  talk.connection->drain();
  const std::string notice = talk.heard();
  const auto crossing = talk.client.infer(times_request({2.0f}));  // the client knows nothing yet
  talk.tell(talk.client.output());
  talk.client.input(notice);
  constexpr auto all = std::numeric_limits<std::int32_t>::max();
  CHECK(talk.client.last_streams == std::vector<std::int32_t>{all});
  talk.exchange();  // its answer to our ping comes
  CHECK(talk.client.last_streams.back() == crossing);
  CHECK(!talk.connection->finished());
  talk.answer(2);
  CHECK(talk.got(first).ended);
  CHECK(talk.got(crossing).ended);
  CHECK(talk.connection->finished());
}

TEST_CASE("Who answers the ping of a connection that drains has read its GOAWAY") {
  Talk talk;
  talk.exchange();
  talk.connection->drain();
  const std::string said = talk.heard();
  REQUIRE(said.size() > 9);
  CHECK(said[3] == NGHTTP2_GOAWAY);
  CHECK(said.find("drain") != std::string::npos);
}

TEST_CASE("A connection that drains waits a second at most for the client's answer") {
  Http2Client::Options options;
  options.answers_pings = false;
  Talk talk({}, options);
  const auto id = talk.client.request(other_headers(), "", false);
  talk.exchange();
  talk.connection->drain();
  talk.exchange();
  CHECK(talk.client.last_streams.size() == 1);
  talk.pass(1.1);
  talk.exchange();
  CHECK(talk.client.last_streams.size() == 2);
  CHECK(talk.client.last_streams.back() == id);
  CHECK(!talk.connection->finished());
  talk.client.reset(id);
  talk.exchange();
  CHECK(talk.connection->finished());
}

TEST_CASE("An old connection is asked to end, and after the grace it does") {
  Limits limits;
  limits.max_age = 100;
  limits.max_age_grace = 10;
  limits.keepalive_time = 0;
  Talk talk(limits);
  talk.client.request(other_headers(), "", false);
  talk.exchange();
  talk.pass(89);
  talk.exchange();
  CHECK(talk.client.goaways.empty());
  talk.pass(22);
  talk.exchange();
  CHECK(talk.client.goaways.size() == 2);
  talk.pass(10);
  CHECK(ends_with(talk, NGHTTP2_NO_ERROR, "max_age"));
}

TEST_CASE("Connections that begin together do not end together") {
  Limits limits;
  limits.max_age = 100;
  Serving serving;
  std::vector<Seconds> ages;
  for (std::uint64_t id = 0; id < 200; ++id) {
    Connection connection(id, {"ipv4:1.2.3.4:5", ""}, limits, *serving.service, nullptr, 1000);
    const std::string hello = Http2Client().output();
    connection.receive(reinterpret_cast<const std::uint8_t*>(hello.data()), hello.size(), 1000);
    std::string out;
    connection.send(out, 1 << 20);
    Seconds age = 0;
    for (std::string more; more.empty() && age < 200; connection.send(more, 1 << 20)) {
      age += 0.5;
      connection.receive(nullptr, 0, 1000 + age);  // it is heard of
      connection.tick(1000 + age);
    }
    ages.push_back(age);
  }
  const auto [least, most] = std::minmax_element(ages.begin(), ages.end());
  CHECK(*least >= 90);
  CHECK(*least < 92);
  CHECK(*most <= 110.5);
  CHECK(*most > 108);
}

TEST_CASE("A connection that has nothing due is left alone") {
  Limits limits;
  limits.keepalive_time = 0;
  Talk talk(limits);
  talk.exchange();
  CHECK(talk.connection->tick(talk.now) == std::numeric_limits<Seconds>::infinity());
}

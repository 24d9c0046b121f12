// A client and a Connection that talk in memory, with a service that computes, an upstream that a
// test answers by hand, and a clock that a test moves.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "connection.h"
#include "http2_client.h"
#include "serving.h"

namespace lane {

// What was passed on.
struct PassedOn {
  Headers headers;
  std::string body;
  bool ended = false;
  std::optional<std::uint32_t> reset;
  std::size_t taken = 0;  // of the response, by the client

  std::string header(const std::string& name) const {
    for (const Header& each : headers) {
      if (each.name == name) return each.value;
    }
    return "(none)";
  }
};

// Outlives the upstream that it is of.
struct UpstreamLog {
  std::map<std::int32_t, PassedOn> calls;
  bool takes = true;  // what comes goes on at once
  int connections = 0;
};

class TestUpstream : public Upstream {
 public:
  TestUpstream(Downstream& downstream, UpstreamLog& log) : downstream_(downstream), log_(log) {
    ++log_.connections;
  }

  void open(std::int32_t stream, Headers headers, bool end) override {
    log_.calls[stream].headers = std::move(headers);
    log_.calls[stream].ended = end;
  }
  void data(std::int32_t stream, std::string_view bytes, bool end) override {
    log_.calls[stream].body.append(bytes);
    log_.calls[stream].ended |= end;
    if (log_.takes && !bytes.empty()) downstream_.upstream_taken(stream, bytes.size());
  }
  // What it has not passed on comes back at once, as UpstreamConnection does it.
  void reset(std::int32_t stream, std::uint32_t error) override {
    PassedOn& call = log_.calls[stream];
    call.reset = error;
    if (!log_.takes && !call.body.empty()) downstream_.upstream_taken(stream, call.body.size());
  }
  void taken(std::int32_t stream, std::size_t bytes) override { log_.calls[stream].taken += bytes; }

 private:
  Downstream& downstream_;
  UpstreamLog& log_;
};

struct Talk {
  explicit Talk(const Limits& limits = {}, const Http2Client::Options& options = {},
                std::size_t room = 100000, bool tokens = false)
      : serving(room, -1, tokens), client(options) {
    connection = std::make_unique<Connection>(
        1, Peer{"ipv4:10.0.0.9:5000", "CN=ada, O=a%b"}, limits, *serving.service,
        [this](Downstream& downstream) { return std::make_unique<TestUpstream>(downstream, log); },
        now);
  }

  ~Talk() {
    connection.reset();
    CHECK(serving.service->reserved == 0);
    CHECK(serving.service->unsent == 0);
    // Two looks: what ends between them is in the first alone.
    const auto passed_on = [&] { return serving.service->inside() - serving.service->in_flight(); };
    const Seconds end = lane::now() + 10;
    while (passed_on() != 0 && lane::now() < end) std::this_thread::yield();
    CHECK(passed_on() == 0);
  }

  // What the client has to say reaches the connection.
  bool tell(const std::string& bytes) {
    return connection->receive(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size(),
                               now);
  }
  std::string heard(std::size_t most = std::size_t{1} << 30) {
    std::string out;
    connection->send(out, most);
    return out;
  }
  // Until neither has anything more to say. False where the connection reads no more.
  bool exchange() {
    bool reads = true;
    for (int quiet = 0; quiet < 2;) {
      const std::string up = client.output();
      if (!up.empty()) reads = tell(up) && reads;
      const std::string down = heard();
      client.input(down);
      quiet = up.empty() && down.empty() ? quiet + 1 : 0;
    }
    serving.service->wake();
    return reads;
  }
  // So many of the service's answers reach the client.
  void answer(int count = 1) {
    serving.service->wake();
    for (int i = 0; i < count; ++i) {
      Finished finished = serving.outbox->take();
      connection->finish(finished.call.stream, std::move(finished.result));
    }
    exchange();
  }
  // Time goes by, as the loop notices it: in steps, and as often as it is asked to.
  void pass(Seconds seconds) {
    for (const Seconds end = now + seconds; now < end && !connection->finished();) {
      now = std::min(end, std::max(now + 1e-3, connection->tick(now)));
    }
    connection->tick(now);
  }
  const Received& got(std::int32_t id) { return client[id]; }

  Seconds now = 1000;
  UpstreamLog log;
  Serving serving;
  Http2Client client;
  std::unique_ptr<Connection> connection;
};

}  // namespace lane

// gRPC's framing and header fields, byte for byte.
#include <doctest/doctest.h>

#include <limits>

#include "grpc.h"

using namespace lane;
using namespace std::string_literals;

namespace {

std::string value_of(const Headers& headers, const std::string& name) {
  for (const Header& header : headers) {
    if (header.name == name) return header.value;
  }
  return "(none)";
}

std::string timing(Seconds queue, Seconds input, Seconds infer, Seconds output) {
  Stages stages;
  stages.compute_input = input;
  stages.compute_infer = infer;
  stages.compute_output = output;
  return value_of(answer_trailers(stages, queue, "1"), "server-timing");
}

}  // namespace

TEST_CASE("a timeout is up to eight digits and a unit") {
  CHECK(parse_timeout("100m") == 0.1);
  CHECK(parse_timeout("2H") == 7200.0);
  CHECK(parse_timeout("3M") == 180.0);
  CHECK(parse_timeout("99999999S") == 99999999.0);
  CHECK(parse_timeout("5u") == 5e-6);
  CHECK(parse_timeout("7n") == 7e-9);
  CHECK(parse_timeout("0m") == 0.0);
}

TEST_CASE("a malformed timeout is none") {
  for (const char* text : {"", "S", "1", "1s", "-1S", "+1S", " 1S", "1 S", "1.5S", "1SS", "0x1S",
                           "123456789S", "999999999999999999999S"}) {
    CHECK_FALSE_MESSAGE(parse_timeout(text).has_value(), text);
  }
}

TEST_CASE("all but printable ASCII is percent-encoded, and the percent sign") {
  CHECK(percent_encoded("input 'a': 100%\n") == "input 'a': 100%25%0A");
  CHECK(percent_encoded("gr\xc3\xb6\xc3\x9f" "e~ \x7f") == "gr%C3%B6%C3%9Fe~ %7F");
  CHECK(percent_encoded("").empty());
}

TEST_CASE("a prefix is a zero and the length, the highest byte first") {
  CHECK(frame_prefix(0) == "\0\0\0\0\0"s);
  CHECK(frame_prefix(0x01020304) == "\0\1\2\3\4"s);
}

TEST_CASE("a body is complete once all of its one frame and its end have come") {
  const std::string body = frame_prefix(3) + "abc";
  for (std::size_t size = 0; size <= body.size(); ++size) {
    CHECK(framing(std::string_view(body).substr(0, size), 10, false) == Framing::incomplete);
    CHECK(framing(std::string_view(body).substr(0, size), 10, true) ==
          (size == body.size() ? Framing::complete : Framing::malformed));
  }
  CHECK(framing(frame_prefix(0), 0, true) == Framing::complete);
}

TEST_CASE("two frames, or bytes behind the first, are malformed") {
  const std::string body = frame_prefix(3) + "abc";
  CHECK(framing(body + body, 10, false) == Framing::malformed);
  CHECK(framing(body + "x", 10, true) == Framing::malformed);
}

TEST_CASE("a compressed frame is told by its first byte") {
  CHECK(framing("\1"s, 10, false) == Framing::compressed);
  CHECK(framing("\1\0\0\0\3abc"s, 10, true) == Framing::compressed);
  CHECK(framing("\2"s, 10, false) == Framing::malformed);
}

TEST_CASE("a message that is too large is told before it has come") {
  CHECK(framing(frame_prefix(11), 10, false) == Framing::too_large);
  CHECK(framing(frame_prefix(10), 10, false) == Framing::incomplete);
  CHECK(framing("\0\xff\xff\xff\xff"s, 10, false) == Framing::too_large);
}

TEST_CASE("an answer's trailers say what it cost") {
  Stages stages;
  stages.rows = 8;
  stages.compute_infer = 0.0015;
  const Headers headers = answer_trailers(stages, 0.25, "12");
  CHECK(headers.size() == 4);
  CHECK(value_of(headers, "grpc-status") == "0");
  CHECK(value_of(headers, "batch-size") == "8");
  CHECK(value_of(headers, "model-version") == "12");
  CHECK(value_of(headers, "server-timing") ==
        "queue;dur=250.000, batch;dur=0.000, compute;dur=1.500, split;dur=0.000");
}

TEST_CASE("trailers that would be the same are written once, and any others anew") {
  AnswerTrailers trailers;
  const Stages stages{8, 0.001, 0.002, 0.003};
  const auto first = trailers.of(stages, 0.25, "12");
  CHECK(trailers.of(stages, 0.25, "12").get() == first.get());
  const auto timing_of = [&](const Stages& of) {
    return value_of(*trailers.of(of, 0.25, "12"), "server-timing");
  };
  CHECK(value_of(*trailers.of({9, 0.001, 0.002, 0.003}, 0.25, "12"), "batch-size") == "9");
  CHECK(timing_of({9, 0.004, 0.002, 0.003}) ==
        "queue;dur=250.000, batch;dur=4.000, compute;dur=2.000, split;dur=3.000");
  CHECK(timing_of({9, 0.004, 0.005, 0.003}) ==
        "queue;dur=250.000, batch;dur=4.000, compute;dur=5.000, split;dur=3.000");
  CHECK(timing_of({9, 0.004, 0.005, 0.006}) ==
        "queue;dur=250.000, batch;dur=4.000, compute;dur=5.000, split;dur=6.000");
  const Stages last{9, 0.004, 0.005, 0.006};
  CHECK(value_of(*trailers.of(last, 0.5, "12"), "server-timing") ==
        "queue;dur=500.000, batch;dur=4.000, compute;dur=5.000, split;dur=6.000");
  CHECK(value_of(*trailers.of(last, 0.5, "13"), "model-version") == "13");
  CHECK(value_of(*first, "batch-size") == "8");  // who had the first keeps it
}

TEST_CASE("durations are rounded as Python rounds them") {
  // f"{seconds * 1e3:.3f}" of each, by Python 3.11.
  CHECK(timing(0.0000005, 0.0000015, 0.0000025, 0.0000035) ==
        "queue;dur=0.001, batch;dur=0.002, compute;dur=0.003, split;dur=0.004");
  CHECK(timing(0.0123456, 59.9999996, 1e-9, 0.0009999) ==
        "queue;dur=12.346, batch;dur=60000.000, compute;dur=0.000, split;dur=1.000");
  CHECK(timing(1e6, -1e-9, 0.0010625, 0.0000625) ==
        "queue;dur=1000000000.000, batch;dur=-0.000, compute;dur=1.062, split;dur=0.062");
}

TEST_CASE("a refusal tells its status, its text and when to try again") {
  Refusal refusal{Code::resource_exhausted, Reason::queue_full, "50% full", 0.0101};
  Headers headers = refusal_trailers(refusal);
  CHECK(headers.size() == 3);
  CHECK(value_of(headers, "grpc-status") == "8");
  CHECK(value_of(headers, "grpc-message") == "50%25 full");
  CHECK(value_of(headers, "grpc-retry-pushback-ms") == "11");
  headers = refusal_trailers({Code::cancelled, Reason::cancelled, "", -1});
  CHECK(headers.size() == 1);
  refusal.retry_after = std::numeric_limits<double>::infinity();
  CHECK(value_of(refusal_trailers(refusal), "grpc-retry-pushback-ms") == "1000000000000000");
}

// Any bytes as a ModelInferRequest: parsed, checked against a few signatures, and answered.
//
// Asserts that every view lies inside the message, and that nothing grows beyond what the message
// pays for.
#include <cstdlib>
#include <functional>
#include <string>

#include "message.h"
#include "signatures.h"

namespace {

using namespace lane;

constexpr std::int64_t kMostRows = 64;  // who asks for more is refused before anything is made
constexpr std::size_t kMostText = 1000;

// Not assert: that goes away where NDEBUG is defined.
void expect(bool holds) {
  if (!holds) std::abort();
}

bool inside(std::string_view whole, const char* data, std::size_t size) {
  const std::less_equal<const char*> before;
  return size == 0 ||
         (before(whole.data(), data) && before(data + size, whole.data() + whole.size()));
}

void check_request(std::string_view message, const InferRequest& request) {
  std::size_t entries = request.inputs.size() + request.outputs.size() + request.raw.size();
  const auto check = [&](std::string_view view) {
    expect(inside(message, view.data(), view.size()));
  };
  check(request.model_name);
  check(request.model_version);
  check(request.id);
  for (const auto& input : request.inputs) {
    check(input.name);
    check(input.datatype);
    entries += input.shape.size();
  }
  for (const auto output : request.outputs) check(output);
  for (const auto contents : request.raw) check(contents);
  expect(entries <= message.size());
}

void check_answer(const Signature& signature, const InferRequest& request, const Checked& checked) {
  Outputs outputs;
  for (const TensorSpec& spec : signature.outputs) {
    Tensor tensor{spec.name, spec.datatype, spec.shape, {}};
    std::size_t bytes = element_bytes(spec.datatype);
    for (auto& size : tensor.shape) {
      if (size == -1) size = &size == &tensor.shape[0] ? checked.rows + 1 : 3;
      bytes *= static_cast<std::size_t>(size);
    }
    tensor.data.resize(bytes);
    outputs.tensors.push_back(std::move(tensor));
  }
  expect(fits(signature, checked.outputs, outputs, checked.rows + 1));
  Answer answer;
  answer.outputs = std::make_shared<Outputs>(std::move(outputs));
  answer.first = 1;
  answer.rows = checked.rows;
  const std::string ids(static_cast<std::size_t>(checked.rows) * 100, 'x');
  const std::string encoded = encode(signature, request.id, checked.outputs, answer, ids);
  const std::size_t each = static_cast<std::size_t>(checked.rows) * 40 + 64;
  expect(!encoded.empty());
  expect(encoded.size() <= request.id.size() + ids.size() + 128 + checked.outputs.size() * each);
}

void check_checked(std::string_view message, const Signature& signature,
                   const InferRequest& request, const Checked& checked) {
  expect(checked.rows >= 1);
  expect(checked.inputs.size() == checked.layout->inputs.size());
  for (std::size_t index = 0; index < checked.inputs.size(); ++index) {
    const std::size_t bytes =
        static_cast<std::size_t>(checked.rows) * checked.layout->inputs[index].bytes;
    expect(bytes != 0);
    expect(inside(message, reinterpret_cast<const char*>(checked.inputs[index]), bytes));
  }
  expect(checked.outputs.size() <= message.size() + signature.outputs.size());
  if (checked.rows <= kMostRows) check_answer(signature, request, checked);
}

struct Target {
  Checker digits{digits_signature()};
  Checker pair{pair_signature()};
  Checker text{{"text", "1", {{"words", "BYTES", {-1}}}, {}, {}}};
  InferRequest request;  // as the lane does: one for all messages

  void run(std::string_view message) {
    if (!parse(message, request)) return;
    check_request(message, request);
    for (Checker* checker : {&digits, &pair, &text}) {
      const auto result = checker->check(request);
      if (const auto* refusal = std::get_if<Refusal>(&result)) {
        expect(!refusal->details.empty() && refusal->details.size() <= kMostText);
      } else if (const auto* checked = std::get_if<Checked>(&result)) {
        check_checked(message, checker->signature(), request, *checked);
      }
    }
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Target target;
  // A copy of exactly that size: whoever reads beyond it is caught.
  const std::vector<char> message(data, data + size);
  target.run({message.data(), message.size()});
  return 0;
}

// The checks of serving/tensors.py and serving/datatypes.py on raw contents, and of the rows in
// serving/batch.py.
#include "signature.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "python_text.h"

namespace lane {
namespace {

constexpr std::size_t kMostLayouts = 64;

using Problem = std::optional<std::variant<Refusal, PassOn>>;
using Specs = std::vector<TensorSpec>;

Problem refused(const PythonText& text) {
  if (!text.sure()) return PassOn{};
  return invalid_input(text.text());
}

PythonText about_input(std::string_view name) {
  PythonText text;
  text.plain("input ").repr(name);
  return text;
}

PythonText& add_names(PythonText& text, const Specs& specs) {
  for (const TensorSpec& spec : specs) {
    text.plain(&spec == &specs.front() ? "" : ", ").repr(spec.name);
  }
  return text;
}

// Its index, or the number of specs where there is none of that name.
std::size_t find(const Specs& specs, std::string_view name) {
  const auto found = std::find_if(specs.begin(), specs.end(),
                                  [&](const TensorSpec& spec) { return spec.name == name; });
  return static_cast<std::size_t>(found - specs.begin());
}

bool has_rows_first(const TensorSpec& spec) { return !spec.shape.empty() && spec.shape[0] == -1; }

bool all_known(const Specs& specs) {
  return std::all_of(specs.begin(), specs.end(), [](const TensorSpec& spec) {
    return element_bytes(spec.datatype) != 0;
  });
}

// A signature whose requests the lane can take: rows first, no BYTES.
bool can_take(const Signature& signature) {
  const auto& inputs = signature.inputs;
  return !inputs.empty() && std::all_of(inputs.begin(), inputs.end(), has_rows_first) &&
         all_known(inputs) && all_known(signature.outputs);
}

bool shape_is(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& wanted) {
  return std::equal(shape.begin(), shape.end(), wanted.begin(), wanted.end(),
                    [](std::int64_t size, std::int64_t want) {
                      return size >= 1 && (want == -1 || size == want);
                    });
}

// Bytes of elements in that shape, none of whose sizes is negative; nothing for too many.
std::optional<std::size_t> bytes_of(const std::vector<std::int64_t>& shape, std::size_t element) {
  for (const std::int64_t size : shape) {
    if (__builtin_mul_overflow(element, size, &element)) return std::nullopt;
  }
  return element;
}

bool is_bool(std::string_view contents) {
  unsigned char all = 0;
  for (const char byte : contents) all |= static_cast<unsigned char>(byte);
  return all <= 1;
}

Problem check_signature(const InferRequest::Input& input, const TensorSpec& spec) {
  if (input.datatype != spec.datatype) {
    return refused(about_input(spec.name)
                       .plain(": expected datatype ")
                       .plain(spec.datatype)
                       .plain(", got ")
                       .repr(input.datatype));
  }
  if (shape_is(input.shape, spec.shape)) return std::nullopt;
  return refused(about_input(spec.name)
                     .plain(": expected shape ")
                     .repr(spec.shape)
                     .plain(", got ")
                     .repr(input.shape));
}

Problem check_contents(const InferRequest::Input& input, std::size_t element,
                       std::string_view contents) {
  const std::optional<std::size_t> expected = bytes_of(input.shape, element);
  if (!expected) return PassOn{};
  if (contents.size() != *expected) {
    return refused(about_input(input.name)
                       .plain(": ")
                       .plain(input.datatype)
                       .plain(" ")
                       .repr(input.shape)
                       .plain(" takes ")
                       .number(*expected)
                       .plain(" bytes, got ")
                       .number(contents.size()));
  }
  if (input.datatype == "BOOL" && !is_bool(contents)) {
    return refused(about_input(input.name).plain(": BOOL takes bytes 0 and 1 only"));
  }
  return std::nullopt;
}

Problem check_raw(const InferRequest& request) {
  if (request.raw.size() == request.inputs.size()) return std::nullopt;
  if (request.raw.empty()) return PassOn{};  // typed contents, all of them empty
  return refused(PythonText()
                     .plain("raw_input_contents has ")
                     .number(request.raw.size())
                     .plain(" entries for ")
                     .number(request.inputs.size())
                     .plain(" inputs"));
}

Problem check_rows(const InferRequest& request) {
  const auto& inputs = request.inputs;
  const std::int64_t rows = inputs.front().shape[0];
  const auto agrees = [&](const InferRequest::Input& input) { return input.shape[0] == rows; };
  if (std::all_of(inputs.begin(), inputs.end(), agrees)) return std::nullopt;
  PythonText text;
  text.plain("inputs must have the same number of rows: ");
  for (const InferRequest::Input& input : inputs) {
    text.plain(&input == &inputs.front() ? "" : ", ").repr(input.name).plain(" has ");
    text.number(input.shape[0]);
  }
  return refused(text);
}

bool in_order(const std::vector<InferRequest::Input>& inputs, const Specs& specs) {
  return std::equal(inputs.begin(), inputs.end(), specs.begin(), specs.end(),
                    [](const InferRequest::Input& input, const TensorSpec& spec) {
                      return input.name == spec.name;
                    });
}

RowSpec row_of(const TensorSpec& spec, const InferRequest::Input& input, std::size_t element) {
  RowSpec row{spec.name, spec.datatype, {input.shape.begin() + 1, input.shape.end()}, 0};
  // There is such a number, as there was one for all rows.
  row.bytes = bytes_of(row.shape, element).value_or(0);
  return row;
}

}  // namespace

Checker::Checker(Signature signature)
    : signature_(std::move(signature)), native_(can_take(signature_)) {
  for (const TensorSpec& spec : signature_.inputs) {
    element_bytes_.push_back(element_bytes(spec.datatype));
  }
}

std::variant<Checked, Refusal, PassOn> Checker::check(const InferRequest& request) {
  const auto told = [](Problem problem) {
    return std::visit([](auto&& what) -> std::variant<Checked, Refusal, PassOn> {
      return std::move(what);
    }, std::move(*problem));
  };
  if (!native_) return PassOn{};
  Checked checked;
  if (Problem problem = choose_outputs(request, checked)) return told(std::move(problem));
  if (Problem problem = match_inputs(request)) return told(std::move(problem));
  if (Problem problem = check_raw(request)) return told(std::move(problem));
  if (Problem problem = read_inputs(request, checked)) return told(std::move(problem));
  if (Problem problem = check_rows(request)) return told(std::move(problem));
  checked.rows = request.inputs.front().shape[0];
  checked.layout = layout_of(request);
  if (!checked.layout) return PassOn{};
  return checked;
}

Checker::Problem Checker::choose_outputs(const InferRequest& request, Checked& checked) const {
  const Specs& specs = signature_.outputs;
  const bool all = request.outputs.empty();
  if (request.outputs.size() > 2 * specs.size()) {
    return refused(PythonText()
                       .number(request.outputs.size())
                       .plain(" outputs are asked for, at most ")
                       .number(2 * specs.size())
                       .plain(" are given: each of them twice"));
  }
  checked.outputs.resize(all ? specs.size() : request.outputs.size());
  for (std::size_t index = 0; index < checked.outputs.size(); ++index) {
    const std::size_t output = all ? index : find(specs, request.outputs[index]);
    if (output == specs.size()) {
      PythonText text;
      text.plain("output ").repr(request.outputs[index]).plain(" is unknown; there is ");
      return refused(add_names(text, specs));
    }
    checked.outputs[index] = static_cast<int>(output);
  }
  return std::nullopt;
}

// Finds the signature's input for each of the request's; mostly they come in its order.
Checker::Problem Checker::match_inputs(const InferRequest& request) {
  const auto& [inputs, specs] = std::tie(request.inputs, signature_.inputs);
  order_.resize(inputs.size());
  for (std::size_t index = 0; index < inputs.size(); ++index) order_[index] = index;
  if (in_order(inputs, specs)) return std::nullopt;
  for (std::size_t index = 0; index < inputs.size(); ++index) {
    const std::string_view name = inputs[index].name;
    order_[index] = find(specs, name);
    if (order_[index] == specs.size()) {
      PythonText text = about_input(name);
      return refused(add_names(text.plain(" is unknown; expected "), specs));
    }
    const auto same = [&](const InferRequest::Input& input) { return input.name == name; };
    if (std::count_if(inputs.begin(), inputs.end(), same) > 1) {
      return refused(about_input(name).plain(" is given twice"));
    }
  }
  for (std::size_t index = 0; index < specs.size(); ++index) {
    if (std::find(order_.begin(), order_.end(), index) == order_.end()) {
      return refused(about_input(specs[index].name).plain(" is missing"));
    }
  }
  return std::nullopt;
}

Checker::Problem Checker::read_inputs(const InferRequest& request, Checked& checked) const {
  checked.inputs.resize(request.inputs.size());
  for (std::size_t index = 0; index < request.inputs.size(); ++index) {
    const InferRequest::Input& input = request.inputs[index];
    const std::size_t place = order_[index];
    if (Problem problem = check_signature(input, signature_.inputs[place])) return problem;
    const std::string_view contents = request.raw[index];
    if (Problem problem = check_contents(input, element_bytes_[place], contents)) return problem;
    checked.inputs[place] = reinterpret_cast<const std::byte*>(contents.data());
  }
  return std::nullopt;
}

LayoutPtr Checker::layout_of(const InferRequest& request) {
  const auto known = std::find_if(layouts_.begin(), layouts_.end(), [&](const LayoutPtr& layout) {
    return is_of(*layout, request);
  });
  if (known != layouts_.end()) return *known;
  auto layout = std::make_shared<Layout>();
  layout->inputs.resize(request.inputs.size());
  for (std::size_t index = 0; index < request.inputs.size(); ++index) {
    const std::size_t place = order_[index];
    layout->inputs[place] =
        row_of(signature_.inputs[place], request.inputs[index], element_bytes_[place]);
  }
  return keep(std::move(layout));
}

// Names and datatypes are the signature's, so that only shapes can differ.
bool Checker::is_of(const Layout& layout, const InferRequest& request) const {
  for (std::size_t index = 0; index < request.inputs.size(); ++index) {
    const auto& shape = request.inputs[index].shape;
    const auto& row = layout.inputs[order_[index]].shape;
    if (!std::equal(shape.begin() + 1, shape.end(), row.begin(), row.end())) return false;
  }
  return true;
}

// Only this thread hands layouts out: what nobody else holds, nobody can come to hold meanwhile.
LayoutPtr Checker::keep(LayoutPtr layout) {
  if (layouts_.size() < kMostLayouts) return layouts_.emplace_back(std::move(layout));
  for (std::size_t tried = 0; tried < layouts_.size(); ++tried) {
    LayoutPtr& oldest = layouts_[next_++ % layouts_.size()];
    if (oldest.use_count() == 1) return oldest = std::move(layout);
  }
  return nullptr;
}

}  // namespace lane

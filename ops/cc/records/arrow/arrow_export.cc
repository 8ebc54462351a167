#include "ops/cc/records/arrow/arrow_export.h"

#include <memory>
#include <utility>

namespace millrace::records {
namespace {

constexpr int64_t kNullable = 2;  // ARROW_FLAG_NULLABLE

template <typename Node>
struct Children {
  explicit Children(std::vector<Node> children) : nodes(std::move(children)) {
    for (Node& node : nodes) pointers.push_back(&node);
  }
  // A consumer that took a child has set its `release` to null.
  ~Children() {
    for (Node& node : nodes) {
      if (node.release != nullptr) node.release(&node);
    }
  }

  std::vector<Node> nodes;
  std::vector<Node*> pointers;
};

struct OwnedArray {
  OwnedArray(std::vector<Buffer> content, std::vector<ArrowArray> arrays)
      : buffers(std::move(content)), children(std::move(arrays)) {
    for (const Buffer& buffer : buffers) pointers.push_back(buffer.size() > 0 ? buffer.data() : nullptr);
  }

  std::vector<Buffer> buffers;
  std::vector<const void*> pointers;
  Children<ArrowArray> children;
};

struct OwnedSchema {
  OwnedSchema(std::string type, std::string field, std::string more, std::vector<ArrowSchema> schemas)
      : format(std::move(type)), name(std::move(field)), metadata(std::move(more)), children(std::move(schemas)) {}

  std::string format, name, metadata;
  Children<ArrowSchema> children;
};

template <typename Owned, typename Node>
void Release(Node* node) {
  delete static_cast<Owned*>(node->private_data);
  node->release = nullptr;
}

void Export(std::unique_ptr<OwnedSchema> owned, bool nullable, ArrowSchema* schema) {
  *schema = {owned->format.c_str(),
             owned->name.c_str(),
             owned->metadata.empty() ? nullptr : owned->metadata.data(),
             nullable ? kNullable : 0,
             static_cast<int64_t>(owned->children.nodes.size()),
             owned->children.pointers.data(),
             nullptr,
             Release<OwnedSchema, ArrowSchema>,
             owned.get()};
  owned.release();
}

}  // namespace

void ExportArray(int64_t length, int64_t null_count, std::vector<Buffer> buffers, std::vector<ArrowArray> children,
                 ArrowArray* array) {
  auto owned = std::make_unique<OwnedArray>(std::move(buffers), std::move(children));
  *array = {length,
            null_count,
            0,
            static_cast<int64_t>(owned->pointers.size()),
            static_cast<int64_t>(owned->children.nodes.size()),
            owned->pointers.data(),
            owned->children.pointers.data(),
            nullptr,
            Release<OwnedArray, ArrowArray>,
            owned.get()};
  owned.release();
}

void ExportField(const std::string& name, ColumnType type, int32_t id, bool nullable, ArrowSchema* schema,
                 bool is_shared) {
  std::vector<ArrowSchema> children;
  std::string format = FormatOf(type.value);
  if (type.depth > 0) {
    const ColumnType inner = {type.value, static_cast<uint8_t>(type.depth - 1), Kind::kPlain};
    format = "+l";
    children.emplace_back();
    ExportField("item", inner, 0, true, &children[0]);
  }
  std::string metadata = MetadataOf(type.kind, id, is_shared);
  Export(std::make_unique<OwnedSchema>(std::move(format), name, std::move(metadata), std::move(children)), nullable,
         schema);
}

void ExportStruct(std::vector<ArrowSchema> children, ArrowSchema* schema) {
  Export(std::make_unique<OwnedSchema>("+s", "", "", std::move(children)), false, schema);
}

}  // namespace millrace::records

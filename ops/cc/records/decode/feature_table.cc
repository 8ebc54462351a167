#include "ops/cc/records/decode/feature_table.h"

#include <utility>

#include "ops/cc/records/decode/line_id.h"
#include "ops/cc/records/wire/metadata_names.h"
#include "ops/cc/records/wire/utf8.h"

namespace millrace::records {

FeatureTable::FeatureTable() {
  unknown_.role = Role::kSkipped;
  Insert(kLineIdName, Role::kLineId);
  Insert(kLabelName, Role::kLabel);
  Insert(kWeightName, Role::kWeight);
  for (const char* name : kOwnColumns) Insert(name, Role::kMetadata);
  for (const LineIdField& field : kLineIdFields) Insert(field.column, Role::kMetadata);
}

bool FeatureTable::Want(const ArrowSchema& wanted, std::string* problem) {
  infer_ = false;
  for (int64_t i = 0; i < wanted.n_children; ++i) {
    const ArrowSchema& field = *wanted.children[i];
    ColumnType type;
    int32_t id = 0;
    const bool any_type = std::string_view(field.format) == "n";
    if (index_.count(field.name) > 0 || (!any_type && !ParseField(field, &type, &id))) {
      *problem = field.name;
      return false;
    }
    NamedColumn* const named = Insert(field.name, Role::kFeature);
    if (!any_type) Create(named, type, id);
  }
  return true;
}

void FeatureTable::BeginRecord() {
  ++record_;
  last_ = nullptr;
  columns_before_ = columns_.size();
  created_.clear();
}

NamedColumn* FeatureTable::Find(std::string_view name, NameProblem* problem) {
  // Records of one stream name the same features in the same order, with gaps.
  size_t guess = last_ == nullptr ? first_ : last_->next;
  for (int i = 0; i < 3 && guess < columns_.size(); ++i) {
    NamedColumn* const named = columns_[guess].get();
    if (named->name == name) return last_ = named;
    guess = named->next;
  }
  NamedColumn* const found = FindSlowly(name, problem);
  if (found != nullptr && found != &unknown_) {
    (last_ == nullptr ? first_ : last_->next) = index_.find(found->name)->second;
    last_ = found;
  }
  return found;
}

NamedColumn* FeatureTable::FindSlowly(std::string_view name, NameProblem* problem) {
  const auto found = index_.find(name);
  if (found != index_.end()) return columns_[found->second].get();
  const auto* const begin = reinterpret_cast<const uint8_t*>(name.data());
  if (!IsUtf8({begin, begin + name.size()})) {
    *problem = NameProblem::kNotUtf8;
    return nullptr;
  }
  if (name.find('\0') != std::string_view::npos) {
    *problem = NameProblem::kHasNul;
    return nullptr;
  }
  if (columns_.size() < kMaxNames) return Insert(name, infer_ ? Role::kFeature : Role::kSkipped);
  *problem = NameProblem::kTooMany;
  return infer_ ? nullptr : &unknown_;
}

NamedColumn* FeatureTable::Insert(std::string_view name, Role role) {
  columns_.push_back(std::make_unique<NamedColumn>());
  NamedColumn* const named = columns_.back().get();
  named->name = name;
  named->role = role;
  index_.emplace(named->name, columns_.size() - 1);
  return named;
}

void FeatureTable::Create(NamedColumn* named, ColumnType type, int32_t id) {
  named->column = std::make_unique<Column>(type);
  named->id = id;
  ++width_;
  created_.push_back(named);
}

void FeatureTable::Rollback(int64_t rows) {
  for (NamedColumn* const named : created_) {
    named->column = nullptr;
    named->id = 0;
    --width_;
  }
  while (columns_.size() > columns_before_) {
    index_.erase(columns_.back()->name);
    columns_.pop_back();
  }
  for (const auto& named : columns_) {
    if (named->record == record_ && named->column != nullptr) named->column->TruncateTo(rows);
  }
}

}  // namespace millrace::records

// Names that stand for row metadata: in lists of features, and of columns (transforms/batch/record_batch.py).
#ifndef MILLRACE_RECORDS_METADATA_NAMES_H_
#define MILLRACE_RECORDS_METADATA_NAMES_H_

namespace millrace::records {

constexpr char kLineIdName[] = "__LINE_ID__";
constexpr char kLabelName[] = "__LABEL__";  // the column has this name too
constexpr char kWeightName[] = "instance_weight";
constexpr char kValueName[] = "value";  // where an Instance has its values

constexpr char kWeightColumn[] = "__WEIGHT__";
constexpr char kDataSourceKeyColumn[] = "__DATA_SOURCE_KEY__";
constexpr char kPartitionColumn[] = "__SOURCE_PARTITION__";
constexpr char kOffsetColumn[] = "__SOURCE_OFFSET__";
constexpr char kRowColumn[] = "__SOURCE_ROW__";

// No feature may have one of these names.
constexpr const char* kOwnColumns[] = {kWeightColumn, kDataSourceKeyColumn, kPartitionColumn, kOffsetColumn,
                                       kRowColumn};

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_METADATA_NAMES_H_

// Tables by name and stores by name.
#include "ops/cc/embedding/table/embedding_store.h"

#include "tests/cc/covers.h"
#include "tests/cc/test_tables.h"

namespace millrace {
namespace {

const std::vector<std::string> kTables = {TextOf(Config(1))};

COVERS("emb:H18")
TEST(EmbeddingStore, H18ATableIsFoundByItsWholeName) {
  const auto store = MakeStore({Named("table10", Config(2)), Named("table1", Config(1))});
  EmbeddingTable* table = nullptr;
  ASSERT_TRUE(store->Find("table1", &table).ok());
  EXPECT_EQ(table, &TableOf(store, 1));
  const Status unknown = store->Find("table", &table);
  EXPECT_EQ(unknown.code(), Code::kNotFound);
  EXPECT_NE(unknown.message().find("it has: table10, table1"), std::string::npos) << unknown.message();
}

TEST(EmbeddingStore, TwoTablesOfOneNameAreRefused) {
  std::shared_ptr<EmbeddingStore> store;
  const Status status = EmbeddingStore::Create("s", {kTables[0], kTables[0]}, &store);
  EXPECT_NE(status.message().find("table 't' is given twice"), std::string::npos);
  EXPECT_EQ(store, nullptr);
}

TEST(EmbeddingStore, WhatIsDoneOnceIsTriedAgainAfterAFailure) {
  const auto store = MakeStore({Config(1)});
  int calls = 0;
  const auto act = [&] { return ++calls == 1 ? Internal("not yet") : Status(); };
  EXPECT_FALSE(store->DoOnce(act).ok());
  EXPECT_TRUE(store->DoOnce(act).ok());
  EXPECT_TRUE(store->DoOnce(act).ok());
  EXPECT_EQ(calls, 2);
}

TEST(StoreRegistry, AStoreLivesUntilItsLastOwnerAndNamesTheOpenOnes) {
  StoreRegistry registry;
  std::shared_ptr<EmbeddingStore> store, joined;
  EXPECT_NE(registry.Find("b", &joined).message().find("open are: none"), std::string::npos);
  ASSERT_TRUE(registry.Open("a", kTables, &store).ok());
  ASSERT_TRUE(registry.Open("a", kTables, &joined).ok());
  EXPECT_EQ(store, joined);
  joined.reset();
  EXPECT_FALSE(registry.Open("a", {TextOf(Config(2))}, &joined).ok());
  EXPECT_NE(registry.Find("b", &joined).message().find("open are: a"), std::string::npos);
  const uint64_t incarnation = store->incarnation();
  registry.Close("a", incarnation, false);
  ASSERT_TRUE(registry.Find("a", &store).ok());
  registry.Close("a", incarnation, false);
  EXPECT_FALSE(registry.Find("a", &joined).ok());
  const std::weak_ptr<EmbeddingStore> watch = store;
  store.reset();
  EXPECT_TRUE(watch.expired());
}

TEST(StoreRegistry, ALateCloseOfAReleasedStoreSparesItsSuccessor) {
  StoreRegistry registry;
  std::shared_ptr<EmbeddingStore> first, second;
  ASSERT_TRUE(registry.Open("a", kTables, &first).ok());
  registry.Close("a", first->incarnation(), true);
  ASSERT_TRUE(registry.Open("a", kTables, &second).ok());
  registry.Close("a", first->incarnation(), false);
  EXPECT_TRUE(registry.Find("a", &second).ok());
}

}  // namespace
}  // namespace millrace

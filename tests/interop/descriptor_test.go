// The wire definitions in proto/ against the official ones, field by field and in both directions.
//
// The Rust build compiles the very files that are read here, so a wrong number in them cannot hide.
package interop

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	electionpb "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	lockpb "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// officialFiles maps each of our files to the official one that it stands for.
func officialFiles() map[string]protoreflect.FileDescriptor {
	return map[string]protoreflect.FileDescriptor{
		"etcdserverpb/rpc.proto":        (&pb.RangeRequest{}).ProtoReflect().Descriptor().ParentFile(),
		"mvccpb/kv.proto":               (&mvccpb.KeyValue{}).ProtoReflect().Descriptor().ParentFile(),
		"authpb/auth.proto":             (&authpb.User{}).ProtoReflect().Descriptor().ParentFile(),
		"v3lockpb/v3lock.proto":         (&lockpb.LockRequest{}).ProtoReflect().Descriptor().ParentFile(),
		"v3electionpb/v3election.proto": (&electionpb.LeaderKey{}).ProtoReflect().Descriptor().ParentFile(),
	}
}

// compileOurs compiles one file of proto/ and what it imports.
func compileOurs(t *testing.T, path string) protoreflect.FileDescriptor {
	t.Helper()
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{"../../proto"}}),
	}
	files, err := compiler.Compile(context.Background(), path)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return files[0]
}

// compileDamaged compiles a file after one replacement, written "old->new", in its text.
func compileDamaged(t *testing.T, path, damage string) protoreflect.FileDescriptor {
	t.Helper()
	from, to, _ := strings.Cut(damage, "->")
	source, err := os.ReadFile(filepath.Join("../../proto", path))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(source), from) != 1 {
		t.Fatalf("%q does not stand exactly once in %s", from, path)
	}
	damaged := strings.Replace(string(source), from, to, 1)
	resolver := protocompile.CompositeResolver{
		&protocompile.SourceResolver{Accessor: protocompile.SourceAccessorFromMap(map[string]string{path: damaged})},
		&protocompile.SourceResolver{ImportPaths: []string{"../../proto"}},
	}
	compiler := protocompile.Compiler{Resolver: protocompile.WithStandardImports(resolver)}
	files, err := compiler.Compile(context.Background(), path)
	if err != nil {
		t.Fatalf("%q: %v", damage, err)
	}
	return files[0]
}

func TestDescriptorsEqualTheOfficialOnes(t *testing.T) {
	var seen census
	for path, official := range officialFiles() {
		ours := compileOurs(t, path)
		for _, difference := range seen.compareFiles(official, ours) {
			t.Errorf("%s: %s", path, difference)
		}
	}
	t.Logf("compared %d services, %d methods, %d messages, %d fields, %d enums, %d enum values",
		seen.services, seen.methods, seen.messages, seen.fields, seen.enums, seen.values)
	if seen.methods < 49 || seen.fields < 261 {
		t.Error("fewer methods or fields than etcd 3.7 has: the comparison did not reach them all")
	}
}

// Of google.api we name only the parts that etcd uses; those must be Google's.
func TestHTTPRuleIsGoogles(t *testing.T) {
	official := (&annotations.HttpRule{}).ProtoReflect().Descriptor()
	ours := compileOurs(t, "google/api/http.proto").Messages().ByName("HttpRule")
	for i := range ours.Fields().Len() {
		field := ours.Fields().Get(i)
		want := official.Fields().ByName(field.Name())
		if want == nil {
			t.Errorf("HttpRule.%s is not an official field", field.Name())
		} else if a, b := describeField(want), describeField(field); a != b {
			t.Errorf("HttpRule: official %s, ours %s", a, b)
		}
	}
	extension := compileOurs(t, "google/api/annotations.proto").Extensions().ByName("http")
	if extension == nil || extension.Number() != annotations.E_Http.TypeDescriptor().Number() {
		t.Error("google.api.http has another number or is missing")
	}
}

// Each kind of damage must be reported; otherwise the comparison above proves nothing.
func TestDescriptorComparisonSeesDamage(t *testing.T) {
	official := officialFiles()["etcdserverpb/rpc.proto"]
	damages := map[string]string{
		"number":     "bytes range_end = 64;->bytes range_end = 9;",
		"type":       "int64 limit = 3;->int32 limit = 3;",
		"label":      "repeated Compare compare = 1;->Compare compare = 1;",
		"name":       "bool keys_only = 8;->bool key_only = 8;",
		"json name":  "bool count_only = 9;->bool count_only = 9 [json_name = \"count\"];",
		"enum value": "NOT_EQUAL = 3;->NOT_EQUAL = 4;",
		"streaming":  "returns (stream RangeStreamResponse)->returns (RangeStreamResponse)",
		"http path":  "\"/v3/kv/put\"->\"/v3/kv/set\"",
		"extra":      "message HashRequest {->message Extra {\n}\nmessage HashRequest {",
		"missing":    "  uint64 raft_term = 4;->",
	}
	for name, damage := range damages {
		var seen census
		if differences := seen.compareFiles(official, compileDamaged(t, "etcdserverpb/rpc.proto", damage)); len(differences) == 0 {
			t.Errorf("%s: damage was not seen", name)
		}
	}
}

// census counts what was compared, so that a test can tell that nothing was skipped.
type census struct {
	services, methods, messages, fields, enums, values int
}

func (c *census) compareFiles(official, ours protoreflect.FileDescriptor) []string {
	var out []string
	if official.Package() != ours.Package() {
		out = append(out, fmt.Sprintf("package: official %s, ours %s", official.Package(), ours.Package()))
	}
	out = append(out, both(official.Services(), ours.Services(), c.compareServices)...)
	out = append(out, both(official.Messages(), ours.Messages(), c.compareMessages)...)
	return append(out, both(official.Enums(), ours.Enums(), c.compareEnums)...)
}

func (c *census) compareServices(official, ours protoreflect.ServiceDescriptor) []string {
	c.services++
	return both(official.Methods(), ours.Methods(), c.compareMethods)
}

func (c *census) compareMethods(official, ours protoreflect.MethodDescriptor) []string {
	c.methods++
	out := unequal(official.FullName(), describeMethod(official), describeMethod(ours))
	if a, b := httpRule(official), httpRule(ours); !proto.Equal(a, b) {
		out = append(out, fmt.Sprintf("%s: HTTP form: official {%v}, ours {%v}", official.FullName(), a, b))
	}
	return out
}

func (c *census) compareMessages(official, ours protoreflect.MessageDescriptor) []string {
	c.messages++
	out := both(official.Fields(), ours.Fields(), c.compareFields)
	out = append(out, both(official.Oneofs(), ours.Oneofs(), func(_, _ protoreflect.OneofDescriptor) []string { return nil })...)
	out = append(out, both(official.Messages(), ours.Messages(), c.compareMessages)...)
	return append(out, both(official.Enums(), ours.Enums(), c.compareEnums)...)
}

func (c *census) compareFields(official, ours protoreflect.FieldDescriptor) []string {
	c.fields++
	return unequal(official.FullName(), describeField(official), describeField(ours))
}

func (c *census) compareEnums(official, ours protoreflect.EnumDescriptor) []string {
	c.enums++
	return both(official.Values(), ours.Values(), func(a, b protoreflect.EnumValueDescriptor) []string {
		c.values++
		return unequal(a.FullName(), fmt.Sprint(a.Number()), fmt.Sprint(b.Number()))
	})
}

// descriptors is what every list of the protoreflect package offers.
type descriptors[D protoreflect.Descriptor] interface {
	Len() int
	Get(i int) D
}

// both pairs two lists by name, compares each pair, and reports what only one of them has.
func both[D protoreflect.Descriptor](official, ours descriptors[D], compare func(a, b D) []string) []string {
	var out []string
	byName := make(map[protoreflect.FullName]D)
	for i := range ours.Len() {
		byName[ours.Get(i).FullName()] = ours.Get(i)
	}
	for i := range official.Len() {
		name := official.Get(i).FullName()
		if mine, ok := byName[name]; ok {
			out = append(out, compare(official.Get(i), mine)...)
			delete(byName, name)
		} else {
			out = append(out, fmt.Sprintf("%s is missing", name))
		}
	}
	for name := range byName {
		out = append(out, fmt.Sprintf("%s is not official", name))
	}
	return out
}

func unequal(name protoreflect.FullName, official, ours string) []string {
	if official == ours {
		return nil
	}
	return []string{fmt.Sprintf("%s: official %s, ours %s", name, official, ours)}
}

func describeMethod(m protoreflect.MethodDescriptor) string {
	return fmt.Sprintf("(stream=%t %s) returns (stream=%t %s)",
		m.IsStreamingClient(), m.Input().FullName(), m.IsStreamingServer(), m.Output().FullName())
}

func describeField(f protoreflect.FieldDescriptor) string {
	text := fmt.Sprintf("%s %s %s = %d json=%s presence=%t packed=%t",
		f.Cardinality(), f.Kind(), f.Name(), f.Number(), f.JSONName(), f.HasPresence(), f.IsPacked())
	if f.Message() != nil {
		text += fmt.Sprintf(" of %s", f.Message().FullName())
	}
	if f.Enum() != nil {
		text += fmt.Sprintf(" of %s", f.Enum().FullName())
	}
	if f.ContainingOneof() != nil {
		text += fmt.Sprintf(" in %s", f.ContainingOneof().Name())
	}
	return text
}

// httpRule reads a method's HTTP form whether its options were compiled here or generated.
func httpRule(m protoreflect.MethodDescriptor) *annotations.HttpRule {
	raw, err := proto.Marshal(m.Options())
	if err != nil {
		panic(err)
	}
	options := new(descriptorpb.MethodOptions)
	if err := proto.Unmarshal(raw, options); err != nil {
		panic(err)
	}
	rule, _ := proto.GetExtension(options, annotations.E_Http).(*annotations.HttpRule)
	return rule
}

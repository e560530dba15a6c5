package operator_test

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"wardgate/policy"
	"wardgate/sp/operator"
	"wardgate/sp/operator/operatortest"
	"wardgate/sp/registry"
)

// The document has every route with its parameters and media types, and no others.
func TestDocumentHasTheRoutes(t *testing.T) {
	t.Parallel()
	doc := operatortest.Parse(t)
	left := map[string]bool{}
	for path, methods := range doc.Paths {
		for m := range methods {
			left[strings.ToUpper(m)+" "+path] = true
		}
	}
	for _, r := range operator.Routes() {
		path := strings.ReplaceAll(r.Path, "{path...}", "{path}")
		op, ok := doc.Paths[path][strings.ToLower(r.Method)]
		if !ok {
			t.Errorf("%s %s is not described", r.Method, path)
			continue
		}
		delete(left, r.Method+" "+path)
		var query, in []string
		for _, p := range op.Parameters {
			switch p.In {
			case "query":
				query = append(query, p.Name)
			case "path":
				in = append(in, "{"+p.Name+"}")
			}
		}
		if !sameSet(query, r.Query) {
			t.Errorf("%s %s: parameters %q, described %q", r.Method, path, r.Query, query)
		}
		for part := range strings.SplitSeq(path, "/") {
			if strings.HasPrefix(part, "{") && !slices.Contains(in, part) {
				t.Errorf("%s %s: %s is not described", r.Method, path, part)
			}
		}
		if kinds := slices.Collect(maps.Keys(op.RequestBody.Content)); !sameSet(kinds, r.Kinds) {
			t.Errorf("%s %s: media types %q, described %q", r.Method, path, r.Kinds, kinds)
		}
	}
	for r := range left {
		t.Errorf("%s is described and does not exist", r)
	}
}

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// Every schema is a type's: the same keys, and needed where the type always writes them.
func TestDocumentHasTheFields(t *testing.T) {
	t.Parallel()
	doc := operatortest.Parse(t)
	types := map[string]any{
		"CA": operator.CA{}, "CAs": operator.CAs{}, "CRL": operator.CRL{}, "CRLs": operator.CRLs{}, "Certificate": operator.Certificate{}, "Change": registry.Change{},
		"Connection": operator.Connection{}, "Contract": registry.Contract{}, "ContractList": operator.List[registry.Contract]{},
		"ContractShown": operator.Contract{}, "Device": registry.Device{}, "DeviceError": operator.Error{},
		"DeviceList": operator.List[registry.Device]{}, "DeviceShown": operator.Device{}, "Entry": operator.Entry{}, "Fault": registry.Fault{},
		"FieldChange": registry.FieldChange{}, "Files": operator.Files{}, "Flow": registry.Flow{}, "Health": operator.Health{},
		"History": operator.History{}, "Lifetimes": policy.Lifetimes{}, "Made": operator.Made{}, "Mark": operator.Mark{},
		"Member": registry.Member{}, "MemberItem": operator.MemberItem{}, "MemberList": operator.List[operator.MemberItem]{},
		"MemberShown": operator.Member{}, "Membership": registry.Membership{}, "Narrow": registry.Narrow{}, "Order": operator.Order{},
		"Party": registry.Party{}, "Place": registry.Place{}, "Plan": operator.Plan{}, "Policy": operator.Policy{}, "Problem": operator.Problem{},
		"Record": operator.Record{}, "Report": operator.Report{}, "Revision": operator.Revision{}, "Revocation": operator.Revocation{},
		"RevokeOrder": operator.RevokeOrder{}, "Rules": registry.Rules{}, "Service": registry.Service{}, "ServiceItem": operator.ServiceItem{},
		"ServiceList": operator.List[operator.ServiceItem]{}, "ServiceShown": operator.Service{}, "Suites": policy.Suites{},
		"Summary": operator.Summary{}, "Test": registry.Test{}, "Zone": registry.Zone{},
	}
	// These are read key by key, and have a test of their own: TestInputs.
	inputs := []string{"FilesInput", "FilesPatch"}
	for name, v := range doc.Schemas {
		if slices.Contains(inputs, name) {
			continue
		}
		of, ok := types[name]
		if !ok {
			t.Errorf("schema %s is of no type", name)
			continue
		}
		delete(types, name)
		schema := v.(map[string]any)
		if schema["additionalProperties"] != false {
			t.Errorf("schema %s takes keys that it does not describe", name)
		}
		described := slices.Collect(maps.Keys(schema["properties"].(map[string]any)))
		var required []string
		for _, r := range orEmpty(schema["required"]) {
			required = append(required, r.(string))
		}
		all, always := fields(reflect.TypeOf(of))
		if !sameSet(all, described) {
			t.Errorf("%s: fields %q, described %q", name, all, described)
		}
		if !sameSet(always, required) {
			t.Errorf("%s: always written %q, required %q", name, always, required)
		}
	}
	for name := range types {
		t.Errorf("type %s has no schema", name)
	}
}

func orEmpty(v any) []any {
	list, _ := v.([]any)
	return list
}

// fields lists the keys of a type, and those that it always writes.
func fields(t reflect.Type) (all, always []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous:
			a, b := fields(f.Type)
			all, always = append(all, a...), append(always, b...)
		case !f.IsExported() || tag == "-":
		default:
			all = append(all, tag)
			if !strings.Contains(options, "omit") {
				always = append(always, tag)
			}
		}
	}
	return all, always
}

// What can be revoked for is one list.
func TestDocumentHasTheReasons(t *testing.T) {
	t.Parallel()
	doc := operatortest.Parse(t)
	for _, reason := range operator.Reasons {
		b, err := json.Marshal(operator.RevokeOrder{Reason: reason})
		if err != nil {
			t.Fatal(err)
		}
		if err := doc.Valid(t, "RevokeOrder", b); err != nil {
			t.Error(err)
		}
	}
	if doc.Valid(t, "RevokeOrder", []byte(`{"reason":"bored"}`)) == nil {
		t.Error("a reason that there is not is described")
	}
}

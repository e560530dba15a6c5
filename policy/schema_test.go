package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"wardgate/internal/testvectors"
)

func readDoc(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(testvectors.Root(), "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type schema struct {
	Ref        string             `json:"$ref"`
	Defs       map[string]*schema `json:"$defs"`
	Type       string             `json:"type"`
	Properties map[string]*schema `json:"properties"`
	Required   []string           `json:"required"`
	Items      *schema            `json:"items"`
	Additional *bool              `json:"additionalProperties"`
	Enum       []string           `json:"enum"`
	MaxItems   *int               `json:"maxItems"`
}

// TestSchemaAgrees compares docs/policy.schema.json with the structs, member by member.
func TestSchemaAgrees(t *testing.T) {
	var root schema
	if err := json.Unmarshal(readDoc(t, "policy.schema.json"), &root); err != nil {
		t.Fatal(err)
	}
	md := readDoc(t, "policy.md")
	seen := map[string]bool{}
	var walk func(where string, s *schema, typ reflect.Type)
	walk = func(where string, s *schema, typ reflect.Type) {
		if name, ok := strings.CutPrefix(s.Ref, "#/$defs/"); ok {
			seen[name] = true
			if s = root.Defs[name]; s == nil {
				t.Errorf("%s: no definition %q", where, name)
				return
			}
		}
		var want string
		switch {
		case typ == reflect.TypeFor[time.Time](), reflect.PointerTo(typ).Implements(textUnmarshaler), typ.Kind() == reflect.String:
			want = "string"
		case typ.Kind() == reflect.Struct:
			want = "object"
		case typ.Kind() == reflect.Slice:
			want = "array"
		default:
			want = "integer"
		}
		if s.Type != want {
			t.Errorf("%s: the struct wants type %q, the schema says %q", where, want, s.Type)
			return
		}
		switch want {
		case "array":
			if s.Items == nil {
				t.Errorf("%s: no items", where)
				return
			}
			if s.MaxItems == nil {
				t.Errorf("%s: no bound", where)
			}
			walk(where+"/0", s.Items, typ.Elem())
		case "object":
			if s.Additional == nil || *s.Additional {
				t.Errorf("%s: additionalProperties must be false", where)
			}
			var names, required []string
			for i := range typ.NumField() {
				name, optional, ok := fieldTag(typ.Field(i))
				if !ok {
					continue
				}
				names = append(names, name)
				if !optional {
					required = append(required, name)
				}
				if p := s.Properties[name]; p != nil {
					walk(where+"/"+name, p, typ.Field(i).Type)
				}
				if !bytes.Contains(md, []byte("`"+name+"`")) {
					t.Errorf("%s/%s is not described in docs/policy.md", where, name)
				}
			}
			slices.Sort(names)
			slices.Sort(required)
			slices.Sort(s.Required)
			if got := slices.Sorted(maps.Keys(s.Properties)); !slices.Equal(got, names) {
				t.Errorf("%s: the struct has %v, the schema %v", where, names, got)
			}
			if !slices.Equal(s.Required, required) {
				t.Errorf("%s: the struct requires %v, the schema %v", where, required, s.Required)
			}
		}
	}
	walk("", &root, reflect.TypeFor[Document]())
	for name := range root.Defs {
		if !seen[name] {
			t.Errorf("definition %q is not used", name)
		}
	}
	for _, c := range codes {
		if !errors.Is(c.err, ErrOptions) && !bytes.Contains(md, []byte("`"+c.code+"`")) {
			t.Errorf("code %s is not described in docs/policy.md", c.code)
		}
	}
}

// TestExample keeps docs/policy.example.json true.
func TestExample(t *testing.T) {
	doc, err := Parse(readDoc(t, "policy.example.json"))
	if err != nil {
		t.Fatal(err)
	}
	table, err := Compile(doc)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.RunTests(); err != nil {
		t.Fatal(err)
	}
	if len(doc.Tests) < 5 || len(doc.Connections) < 3 {
		t.Error("the example shows too little")
	}
}

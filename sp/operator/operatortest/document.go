// Package operatortest checks what the operators' API answers against the document that describes it.
package operatortest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"wardgate/sp/operator"
)

// name is what the document is called in messages.
const name = "openapi.json"

// Document is the OpenAPI document, with its schemas compiled. It remembers what it was asked about.
type Document struct {
	Paths   map[string]map[string]Operation // by path and method in lower case
	Schemas map[string]any

	mu      sync.Mutex // guards what follows
	schemas *jsonschema.Compiler
	seen    map[string]bool // operations that were answered with success
}

// Operation is one of the document's.
type Operation struct {
	Parameters  []Parameter `json:"parameters"`
	RequestBody struct {
		Content map[string]json.RawMessage `json:"content"`
	} `json:"requestBody"`
	Responses map[string]Response `json:"responses"`
}

// Parameter is one of an operation's.
type Parameter struct {
	Name     string `json:"name"`
	In       string `json:"in"`
	Required bool   `json:"required"`
}

// Response is what may be answered.
type Response struct {
	Ref     string                     `json:"$ref"`
	Headers map[string]json.RawMessage `json:"headers"`
	Content map[string]json.RawMessage `json:"content"`
}

// Parse reads operator.OpenAPI.
func Parse(t testing.TB) *Document {
	t.Helper()
	d := &Document{schemas: jsonschema.NewCompiler(), seen: map[string]bool{}}
	var parts struct {
		OpenAPI    string                          `json:"openapi"`
		Paths      map[string]map[string]Operation `json:"paths"`
		Components struct {
			Schemas map[string]any `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(operator.OpenAPI, &parts); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(parts.OpenAPI, "3.1.") {
		t.Fatalf("expected OpenAPI 3.1, whose schemas are JSON Schema 2020-12, came %q", parts.OpenAPI)
	}
	d.Paths, d.Schemas = parts.Paths, parts.Components.Schemas
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(operator.OpenAPI))
	if err != nil {
		t.Fatal(err)
	}
	d.schemas.DefaultDraft(jsonschema.Draft2020)
	d.schemas.AssertFormat()
	if err := d.schemas.AddResource(name, doc); err != nil {
		t.Fatal(err)
	}
	for _, s := range slices.Sorted(maps.Keys(d.Schemas)) {
		if _, err := d.schemas.Compile(name + "#/components/schemas/" + s); err != nil {
			t.Fatalf("schema %s: %v", s, err)
		}
	}
	return d
}

// find returns the path of the document that a request's path is of; empty: none.
func (d *Document) find(path string) string {
	for _, p := range slices.Sorted(maps.Keys(d.Paths)) {
		if fits(strings.Split(p, "/"), strings.Split(path, "/")) {
			return p
		}
	}
	return ""
}

// fits reports whether a path is of a template. {path} takes all that is left.
func fits(template, path []string) bool {
	for i, part := range template {
		switch {
		case i >= len(path):
			return false
		case part == "{path}":
			return true
		case part != path[i] && !strings.HasPrefix(part, "{"):
			return false
		}
	}
	return len(template) == len(path)
}

// Answer checks one answer: that the operation is described and, of the answer, the status, the media
// type, the validator and every key. What was asked with success must have used described parameters.
func (d *Document) Answer(t testing.TB, method string, to *url.URL, status int, header http.Header, body []byte) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.answer(method, to, status, header, body); err != nil {
		t.Errorf("%s %s: %d: %v", method, to, status, err)
	}
}

func (d *Document) answer(method string, to *url.URL, status int, header http.Header, body []byte) error {
	problem := name + "#/components/responses/Problem/content/application~1problem+json/schema"
	path := d.find(to.Path)
	op, described := d.Paths[path][strings.ToLower(method)]
	if status >= 400 {
		if kind := header.Get("Content-Type"); kind != "application/problem+json" {
			return fmt.Errorf("expected a problem, came %q: %s", kind, body)
		}
		return d.valid(problem, body)
	}
	if !described {
		return fmt.Errorf("the operation is not described")
	}
	for q := range to.Query() {
		if !slices.ContainsFunc(op.Parameters, func(p Parameter) bool { return p.In == "query" && p.Name == q }) {
			return fmt.Errorf("parameter %s is not described", q)
		}
	}
	r, ok := op.Responses[fmt.Sprint(status)]
	if !ok {
		return fmt.Errorf("the status is not described")
	}
	if header.Get("ETag") != "" && status == http.StatusOK && r.Headers["ETag"] == nil && !strings.Contains(path, "{path}") {
		return fmt.Errorf("ETag is not described")
	}
	d.seen[strings.ToLower(method)+" "+path] = true
	if status == http.StatusNotModified {
		return nil
	}
	kind := strings.TrimSuffix(header.Get("Content-Type"), "; charset=utf-8")
	raw, ok := r.Content[kind]
	if !ok {
		return fmt.Errorf("media type %q is not described", header.Get("Content-Type"))
	}
	if !bytes.Contains(raw, []byte("schema")) {
		return nil
	}
	escape := strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D").Replace
	return d.valid(fmt.Sprintf("%s#/paths/%s/%s/responses/%d/content/%s/schema", name, escape(path), strings.ToLower(method), status, escape(kind)), body)
}

func (d *Document) valid(at string, body []byte) error {
	s, err := d.schemas.Compile(at)
	if err != nil {
		return err
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err == nil {
		err = s.Validate(v)
	}
	if err != nil {
		return fmt.Errorf("%w\n%.2000s", err, body)
	}
	return nil
}

// Valid checks a value of a named schema, such as the body of a request.
func (d *Document) Valid(t testing.TB, schema string, body []byte) error {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.valid(name+"#/components/schemas/"+schema, body)
}

// Unseen lists the operations that no answer with success was checked of.
func (d *Document) Unseen() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for path, methods := range d.Paths {
		for m := range methods {
			if key := m + " " + path; !d.seen[key] {
				out = append(out, key)
			}
		}
	}
	slices.Sort(out)
	return out
}

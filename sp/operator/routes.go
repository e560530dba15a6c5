package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"wardgate/internal/certs"
	"wardgate/sp/registry"
)

// route is one line of the API. openapi.json describes each; a test compares.
type route struct {
	method, path string
	query        []string // parameters
	kinds        []string // media types of the body
	limit        int64    // largest body, octets; 0: no body
	do           func(*request) (*answer, error)
}

// heavy reports whether serving the route holds a whole registry as text in memory.
func (rt *route) heavy() bool {
	return rt.limit > maxOrder || rt.method == http.MethodDelete || rt.path == "/v1/registry/files"
}

var (
	pages  = []string{"after", "limit"}
	inputs = []string{typeJSON, typePatch, typeTar}
)

var routes = []route{
	{"GET", "/v1/openapi.json", nil, nil, 0, func(*request) (*answer, error) {
		return &answer{kind: typeOpenAPI, raw: OpenAPI}, nil
	}},
	{"GET", "/v1/health", nil, nil, 0, func(r *request) (*answer, error) {
		return value(r.api.Health(r.Context()))
	}},
	{"GET", "/v1/registry", nil, nil, 0, func(r *request) (*answer, error) {
		v, err := r.api.Registry(r.Context())
		if err != nil {
			return nil, err
		}
		return &answer{value: v, etag: registryETag(v.Revision)}, nil
	}},
	{"GET", "/v1/registry/history", []string{"before", "limit"}, nil, 0, func(r *request) (*answer, error) {
		before, p := r.number("before", 0, 1<<63-1)
		n, p2 := r.number("limit", 1, MaxPage)
		if p = first(p, p2); p != nil {
			return nil, p
		}
		return value(r.api.History(r.Context(), before, int(n)))
	}},
	{"GET", "/v1/registry/files", []string{"revision"}, nil, 0, getFiles},
	{"GET", "/v1/registry/files/{path...}", nil, nil, 0, func(r *request) (*answer, error) {
		f, err := r.api.File(r.Context(), r.PathValue("path"))
		if err != nil {
			return nil, err
		}
		return &answer{kind: kindOf(f.Path) + "; charset=utf-8", raw: []byte(f.Text), etag: f.ETag}, nil
	}},
	{"PUT", "/v1/registry/files/{path...}", []string{"why"}, []string{typeTOML, typePEM}, registry.MaxFileSize, putFile},
	{"DELETE", "/v1/registry/files/{path...}", []string{"why"}, nil, 0, func(r *request) (*answer, error) {
		had, p := r.ifMatch()
		if p != nil {
			return nil, p
		}
		return value(r.api.PutFile(r.Context(), r.PathValue("path"), nil, had, r.by))
	}},
	{"POST", "/v1/registry/plan", nil, inputs, MaxBody, func(r *request) (*answer, error) {
		in, p := r.input()
		if p != nil {
			return nil, p
		}
		v, err := r.api.Plan(r.Context(), in)
		if err != nil {
			return nil, err
		}
		return &answer{value: v, etag: registryETag(v.From)}, nil
	}},
	{"POST", "/v1/registry/apply", []string{"why"}, inputs, MaxBody, apply},
	{"GET", "/v1/members", pages, nil, 0, listOf((*Local).Members)},
	{"GET", "/v1/members/{name}", nil, nil, 0, oneOf((*Local).Member)},
	{"GET", "/v1/devices", pages, nil, 0, listOf((*Local).Devices)},
	{"GET", "/v1/devices/{name}", nil, nil, 0, oneOf((*Local).Device)},
	{"POST", "/v1/devices/{name}/revoke", nil, []string{typeJSON}, maxOrder, func(r *request) (*answer, error) {
		var o RevokeOrder
		if p := r.order(&o); p != nil {
			return nil, p
		}
		return value(r.api.RevokeDevice(r.Context(), r.PathValue("name"), o.Reason, By{r.by.Who, o.Why}))
	}},
	{"GET", "/v1/services", pages, nil, 0, listOf((*Local).Services)},
	{"GET", "/v1/services/{name}", nil, nil, 0, oneOf((*Local).Service)},
	{"GET", "/v1/services/{name}/ca", nil, nil, 0, oneOf((*Local).ServiceCAs)},
	{"POST", "/v1/services/{name}/ca", nil, []string{typeJSON}, maxOrder, func(r *request) (*answer, error) {
		var o Order
		if p := r.order(&o); p != nil {
			return nil, p
		}
		return value(r.api.MakeServiceKey(r.Context(), r.PathValue("name"), By{r.by.Who, o.Why}))
	}},
	{"GET", "/v1/contracts", pages, nil, 0, listOf((*Local).Contracts)},
	{"GET", "/v1/contracts/{name}", nil, nil, 0, oneOf((*Local).Contract)},
	{"GET", "/v1/record", pages, nil, 0, func(r *request) (*answer, error) {
		after, p := r.number("after", 0, 1<<63-1)
		n, p2 := r.number("limit", 1, MaxPage)
		if p = first(p, p2); p != nil {
			return nil, p
		}
		return value(r.api.Record(r.Context(), after, int(n)))
	}},
	{"GET", "/v1/record/verify", []string{"seq", "hash"}, nil, 0, verify},
	{"GET", "/v1/crls", nil, nil, 0, func(r *request) (*answer, error) {
		return value(r.api.CRLs(r.Context()))
	}},
}

// Order is an order that needs no more than a reason.
type Order struct {
	Why string `json:"why,omitempty"`
}

// RevokeOrder is the order to revoke a device.
type RevokeOrder struct {
	Reason string `json:"reason"` // one of Reasons
	Why    string `json:"why,omitempty"`
}

func value[T any](v T, err error) (*answer, error) {
	if err != nil {
		return nil, err
	}
	return &answer{value: v}, nil
}

func first(list ...*Problem) *Problem {
	for _, p := range list {
		if p != nil {
			return p
		}
	}
	return nil
}

// number reads a parameter; 0 where it is not there.
func (r *request) number(name string, least, most uint64) (uint64, *Problem) {
	text, there := r.query[name]
	if !there {
		return 0, nil
	}
	n, err := strconv.ParseUint(text[0], 10, 64)
	if err != nil || n < least || n > most {
		return 0, problem(http.StatusBadRequest, CodeParameter, fmt.Sprintf("%s from %d to %d", name, least, most), clip(text[0]), "")
	}
	return n, nil
}

func listOf[T any](list func(*Local, context.Context, Page) (*List[T], error)) func(*request) (*answer, error) {
	return func(r *request) (*answer, error) {
		n, p := r.number("limit", 1, MaxPage)
		if p != nil {
			return nil, p
		}
		after := r.query.Get("after")
		if len(after) > maxPath {
			return nil, problem(http.StatusBadRequest, CodeParameter, "a name", clip(after), "")
		}
		return value(list(r.api, r.Context(), Page{after, int(n)}))
	}
}

func oneOf[T any](one func(*Local, context.Context, string) (T, error)) func(*request) (*answer, error) {
	return func(r *request) (*answer, error) { return value(one(r.api, r.Context(), r.PathValue("name"))) }
}

func getFiles(r *request) (*answer, error) {
	var at *uint64
	if _, there := r.query["revision"]; there {
		n, p := r.number("revision", 0, 1<<63-1)
		if p != nil {
			return nil, p
		}
		at = &n
	}
	f, err := r.api.Files(r.Context(), at)
	if err != nil {
		return nil, err
	}
	if !wantsTar(r.Header.Get("Accept")) {
		return &answer{value: f, etag: registryETag(f.Revision)}, nil
	}
	data, err := writeTar(f.Files)
	if err != nil {
		return nil, err
	}
	// Each form of the files has its own validator (RFC 9110, section 8.8.3.3).
	return &answer{kind: typeTar, raw: data, etag: fmt.Sprintf(`"r%d-tar"`, f.Revision)}, nil
}

// wantsTar reports whether an archive is the first thing that a client would take.
func wantsTar(accept string) bool {
	for t := range strings.SplitSeq(accept, ",") {
		t, _, _ = strings.Cut(t, ";")
		switch strings.ToLower(strings.TrimSpace(t)) {
		case typeTar:
			return true
		case typeJSON, "*/*", "application/*":
			return false
		}
	}
	return false
}

func kindOf(path string) string {
	if strings.HasSuffix(path, ".pem") {
		return typePEM
	}
	return typeTOML
}

// ifMatch reads the one entity tag that a change is for.
func (r *request) ifMatch() (string, *Problem) {
	tag := r.Header.Get("If-Match")
	switch list := etags(tag); {
	case tag == "":
		return "", problem(http.StatusPreconditionRequired, CodePrecondition, "If-Match with the ETag that the change is for", "none", "fetch it, look at it, and send its ETag")
	case len(list) != 1 || tag != list[0] || tag != "*" && (len(tag) < 2 || tag[0] != '"' || tag[len(tag)-1] != '"'):
		return "", problem(http.StatusBadRequest, CodeMalformed, "If-Match with one strong entity tag", clip(tag), "")
	}
	return tag, nil
}

func putFile(r *request) (*answer, error) {
	path := r.PathValue("path")
	if p := checkPath(path); p != nil {
		return nil, p
	}
	if want := kindOf(path); r.kind != want {
		return nil, problem(http.StatusUnsupportedMediaType, CodeType, "Content-Type "+want, r.kind, "")
	}
	had := ""
	if none := r.Header.Get("If-None-Match"); none != "*" || r.Header.Get("If-Match") != "" {
		var p *Problem
		if had, p = r.ifMatch(); p != nil {
			if p.Code == CodePrecondition {
				p.Do += "; or send If-None-Match: * to make it"
			}
			return nil, p
		}
	}
	if !utf8.Valid(r.body) {
		return nil, problem(http.StatusBadRequest, CodeMalformed, "text in UTF-8", "something else", "")
	}
	text := string(r.body)
	v, err := r.api.PutFile(r.Context(), path, &text, had, r.by)
	if err != nil {
		return nil, err
	}
	status := http.StatusOK
	if had == "" {
		status = http.StatusCreated
	}
	// No ETag: what is kept is the registry's own form of the file (RFC 9110, section 9.3.4).
	return &answer{value: v, status: status}, nil
}

func apply(r *request) (*answer, error) {
	tag, p := r.ifMatch()
	if p != nil {
		return nil, p
	}
	var from *uint64
	if tag != "*" {
		n, err := strconv.ParseUint(strings.TrimPrefix(strings.Trim(tag, `"`), "r"), 10, 63)
		if err != nil || registryETag(n) != tag {
			return nil, problem(http.StatusPreconditionFailed, CodeConflict, "If-Match with the ETag of a plan", clip(tag), "make the plan, and send its ETag")
		}
		from = &n
	}
	in, p := r.input()
	if p != nil {
		return nil, p
	}
	v, err := r.api.Apply(r.Context(), in, from, r.by)
	if err != nil {
		return nil, err
	}
	return &answer{value: v, etag: registryETag(v.Applied)}, nil
}

// input reads a registry, or what changes of it.
func (r *request) input() (Input, *Problem) {
	var list map[string]*string
	var p *Problem
	switch r.kind {
	case typeTar:
		list, p = readTar(bytes.NewReader(r.body), r.most)
	default:
		list, p = decodeFiles(r.body, r.kind == typePatch)
	}
	if p != nil {
		return Input{}, p
	}
	if r.kind == typePatch {
		return Input{Patch: list}, nil
	}
	files := make(memory, len(list))
	for name, text := range list {
		files[name] = *text
	}
	return Input{Files: files}, nil
}

// order reads a small JSON object; an unknown key is an error.
func (r *request) order(into any) *Problem {
	d := json.NewDecoder(bytes.NewReader(r.body))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, e := d.Token(); !errors.Is(e, io.EOF) {
			err = errors.New("more than one value")
		}
	}
	if err != nil {
		return problem(http.StatusBadRequest, CodeMalformed, "an object of openapi.json", certs.Quote(err.Error()), "see openapi.json")
	}
	switch o := into.(type) {
	case *Order:
		return checkWhy(o.Why)
	case *RevokeOrder:
		return checkWhy(o.Why)
	}
	return nil
}

// checkWhy refuses what the record would refuse, as the client's fault.
func checkWhy(why string) *Problem {
	bad := len(why) > maxWhy || !utf8.ValidString(why)
	for _, c := range why {
		bad = bad || c < ' ' && c != '\n' && c != '\t' || c >= 0x7f && c <= 0x9f
	}
	if bad {
		return problem(http.StatusBadRequest, CodeParameter, fmt.Sprintf("why: a text of at most %d octets, without control characters", maxWhy), clip(why), "")
	}
	return nil
}

func verify(r *request) (*answer, error) {
	seq, p := r.number("seq", 1, 1<<63-1)
	if p != nil {
		return nil, p
	}
	hash := r.query.Get("hash")
	if (seq == 0) != (hash == "") || hash != "" && !isHash(hash) {
		return nil, problem(http.StatusBadRequest, CodeParameter, "seq and hash (64 hex digits) of a mark, or neither", clip(r.URL.RawQuery), "")
	}
	return value(r.api.VerifyRecord(r.Context(), Mark{seq, hash}))
}

func isHash(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// readProblem tells why a body could not be read.
func readProblem(err error, limit int64) *Problem {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return problem(http.StatusRequestEntityTooLarge, CodeTooLarge, fmt.Sprintf("at most %d octets", limit), "more", "")
	}
	return problem(http.StatusRequestTimeout, CodeMalformed, fmt.Sprintf("a whole body within %v", readTime), certs.Quote(err.Error()), "")
}

package registry

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// lines maps the paths of a TOML file that the decoder has accepted ("flow[0].sources[1]") to line
// numbers. Memberships are found by their service too, as in Place: "membership[group-a].until".
func lines(data []byte) map[string]int {
	w := walker{out: make(map[string]int), arrays: make(map[string]int)}
	for i, b := range data {
		if b == '\n' {
			w.ends = append(w.ends, i)
		}
	}
	var p unstable.Parser
	p.Reset(data)
	prefix := ""
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			prefix = w.header(e)
		case unstable.KeyValue:
			w.keyValue(prefix, e)
		default: // comments
		}
	}
	w.memberships(data)
	return w.out
}

type walker struct {
	out    map[string]int
	arrays map[string]int // path of an array of tables → how many so far
	ends   []int          // offsets of line feeds
}

// line returns the line of a node, 0 when it does not know where it stands.
func (w *walker) line(n *unstable.Node) int {
	if n.Raw.Length == 0 {
		return 0
	}
	lo, hi := 0, len(w.ends)
	for lo < hi {
		if mid := (lo + hi) / 2; w.ends[mid] < int(n.Raw.Offset) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo + 1
}

func (w *walker) note(path string, line int) {
	if _, ok := w.out[path]; !ok && line > 0 {
		w.out[path] = line
	}
}

func join(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

// header returns the path of [a.b] or [[a.b]]: an array of tables means its last entry.
func (w *walker) header(e *unstable.Node) string {
	path := ""
	it := e.Key()
	for it.Next() {
		key := it.Node()
		path = join(path, string(key.Data))
		if it.IsLast() && e.Kind == unstable.ArrayTable {
			w.note(path, w.line(key))
			w.arrays[path]++
		}
		if n := w.arrays[path]; n > 0 {
			path = nth(path, n-1)
		}
		w.note(path, w.line(key))
	}
	return path
}

func (w *walker) keyValue(prefix string, e *unstable.Node) {
	line := 0
	it := e.Key()
	for it.Next() {
		prefix = join(prefix, string(it.Node().Data))
		line = w.line(it.Node())
		w.note(prefix, line)
	}
	w.value(prefix, e.Value(), line)
}

func (w *walker) value(path string, v *unstable.Node, line int) {
	it := v.Children()
	switch v.Kind {
	case unstable.Array:
		for i := 0; it.Next(); {
			n := it.Node()
			if n.Kind == unstable.Comment {
				continue
			}
			at := line
			if l := w.line(n); l > 0 {
				at = l
			}
			w.note(nth(path, i), at)
			w.value(nth(path, i), n, at)
			i++
		}
	case unstable.InlineTable:
		for it.Next() {
			if it.Node().Kind == unstable.KeyValue {
				w.keyValue(path, it.Node())
			}
		}
	default:
	}
}

// memberships adds the names by service.
func (w *walker) memberships(data []byte) {
	if !bytes.Contains(data, []byte("membership")) {
		return
	}
	var f deviceFile
	if decode(data, &f) != nil {
		return
	}
	add := make(map[string]int)
	for path, line := range w.out {
		number, rest, ok := strings.Cut(strings.TrimPrefix(path, "membership["), "]")
		if i, err := strconv.Atoi(number); ok && err == nil && strings.HasPrefix(path, "membership[") && i < len(f.Membership) {
			to := "membership[" + f.Membership[i].Service + "]" + rest
			// Of a service that is there twice, the second is the fault.
			add[to] = max(add[to], line)
		}
	}
	for path, line := range add {
		w.note(path, line)
	}
}

// lineOf returns the line of a path, or of the nearest thing around it.
func lineOf(where map[string]int, path string) int {
	for path != "" {
		if l, ok := where[path]; ok {
			return l
		}
		path = path[:max(strings.LastIndexByte(path, '.'), strings.LastIndexByte(path, '['), 0)]
	}
	return 0
}

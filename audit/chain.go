package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// MaxLine bounds one line of the file in octets, newline included. A record that would be longer
// has its details cut, not its other fields.
const MaxLine = 64 << 10

// genesis is Prev of the very first record: 64 zeros.
const genesis = "0000000000000000000000000000000000000000000000000000000000000000"

// seal sets rec's Hash and returns its line without the newline. The hash covers the line as it
// stands with an empty hash: the fields in the order of Record, as encoding/json writes them. So
// whoever verifies needs no parser to agree with ours about spaces or escapes (docs/audit.md).
func (r *Record) seal() ([]byte, error) {
	r.Hash = ""
	open, err := encode(r)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(open)
	r.Hash = hex.EncodeToString(sum[:])
	return encode(r)
}

func encode(r *Record) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // the record is read by people, not by browsers
	if err := e.Encode(r); err != nil {
		return nil, fmt.Errorf("audit: record of event %q cannot be written: %w", r.Event, err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// hashSuffix is how every line ends; the digits are what seal put there.
const (
	hashField  = `,"hash":"`
	hashDigits = 2 * sha256.Size
	lineTail   = len(hashField) + hashDigits + len(`"}`)
)

var (
	errNotRecord = errors.New("not a record of this log")
	errHash      = errors.New("the record's hash does not fit its content")
)

// parseLine reads one line and checks its own hash.
func parseLine(line []byte) (Record, error) {
	var r Record
	if len(line) < lineTail || len(line) >= MaxLine {
		return r, errNotRecord
	}
	cut := len(line) - lineTail
	if string(line[cut:cut+len(hashField)]) != hashField || string(line[len(line)-2:]) != `"}` {
		return r, errNotRecord
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, fmt.Errorf("%w: %w", errNotRecord, err)
	}
	if _, err := d.Token(); err == nil {
		return r, errNotRecord
	}
	h := sha256.New()
	h.Write(line[:cut+len(hashField)])
	h.Write([]byte(`"}`))
	if hex.EncodeToString(h.Sum(nil)) != string(line[cut+len(hashField):len(line)-2]) {
		return r, errHash
	}
	// A field may be spelt twice, or otherwise than we do: then the hash fits, but not our form.
	if again, err := encode(&r); err != nil || !bytes.Equal(again, line) {
		return r, errNotRecord
	}
	return r, nil
}

// bound cuts what would make a line longer than MaxLine, and replaces what is not UTF-8, so that
// the line means the same to every reader.
func (r *Record) bound() {
	cut := func(s string, n int) string {
		if len(s) > n {
			s = s[:n] + "…"
		}
		return strings.ToValidUTF8(s, "\ufffd")
	}
	r.Who, r.What, r.Where = cut(r.Who, 512), cut(r.What, 512), cut(r.Where, 512)
	if len(r.Detail) == 0 {
		return
	}
	left := 8 << 10 // each octet may become six in JSON
	d := make(map[string]string, len(r.Detail))
	for _, k := range sortedKeys(r.Detail) {
		v := cut(r.Detail[k], 4096)
		if left -= len(k) + len(v); left < 0 || len(d) == 64 {
			d["cut"] = "more details than fit into one record"
			break
		}
		d[cut(k, 256)] = v
	}
	r.Detail = d
}

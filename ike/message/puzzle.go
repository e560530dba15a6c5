package message

import "encoding/binary"

// PuzzleKeys is how many keys a solution has (RFC 8019, section 7.1.3).
const PuzzleKeys = 4

// MinPuzzle is the smallest number of zero bits that a puzzle may ask for (RFC 8019, section 4.4). 0 asks
// for as many as the initiator can afford.
const MinPuzzle = 8

// PuzzleSolution is the Puzzle Solution payload (RFC 8019, section 8.2).
type PuzzleSolution struct {
	Generic
	// Data are PuzzleKeys keys of the same length, at least one octet each.
	Data []byte
}

// PayloadType implements Payload.
func (p *PuzzleSolution) PayloadType() PayloadType { return PayloadPS }

// Key returns the key with number i, from 0.
func (p *PuzzleSolution) Key(i int) []byte {
	n := len(p.Data) / PuzzleKeys
	return p.Data[i*n : (i+1)*n : (i+1)*n]
}

func parsePS(g Generic, r *reader) *PuzzleSolution {
	p := &PuzzleSolution{Generic: g, Data: r.rest()}
	if n := len(p.Data); n == 0 || n%PuzzleKeys != 0 {
		r.fail("length of the Puzzle Solution Data", "a multiple of 4, and not 0", n)
	}
	return p
}

func (p *PuzzleSolution) appendBody(dst []byte) ([]byte, error) {
	if n := len(p.Data); n == 0 || n%PuzzleKeys != 0 {
		return nil, &EncodeError{Payload: PayloadPS, Field: "length of the Puzzle Solution Data", Want: "a multiple of 4, and not 0", Got: n}
	}
	return append(dst, p.Data...), nil
}

// NewPuzzle returns N(PUZZLE): prf is the PRF to use, difficulty the number of zero bits (RFC 8019,
// section 8.1).
func NewPuzzle(prf PRFID, difficulty uint8) *Notify {
	return &Notify{Type: NotifyPuzzle, Data: append(binary.BigEndian.AppendUint16(nil, uint16(prf)), difficulty)}
}

// Puzzle returns what N(PUZZLE) asks for. Error: *SyntaxError.
func (p *Notify) Puzzle() (prf PRFID, difficulty uint8, err error) {
	r := reader{payload: PayloadNotify, b: p.Data}
	if p.Protocol != ProtocolNone {
		r.fail("protocol ID of PUZZLE", "0", int(p.Protocol))
	}
	if len(p.SPI) > 0 {
		r.fail("SPI size of PUZZLE", "0", len(p.SPI))
	}
	prf = PRFID(r.u16("the PRF of a puzzle"))
	difficulty = r.u8("the difficulty of a puzzle")
	if difficulty > 0 && difficulty < MinPuzzle {
		r.fail("difficulty of a puzzle", "0, or 8 to 255", int(difficulty))
	}
	if err := r.end(); err != nil {
		return 0, 0, err
	}
	return prf, difficulty, nil
}

package workload

import (
	"fmt"
	"hash/maphash"
	"net/http"

	"spanflame/workload/faults"
)

// The customers in the index, and how many of them a request looks up.
const (
	indexed = 5000
	lookups = 8000
)

// customerIndex finds customers by name. It is a hash map.
type customerIndex struct {
	hash    func(name string) uint64
	buckets [1024][]customer
}

// customer is an entry of the index.
type customer struct {
	name   string
	number int
}

// addBadHash adds the fault that the hash of a map's key is nearly the same for all keys.
func (s *Service) addBadHash() {
	f := s.addFault(&fault{is: faults.Fault{
		Name:     "bad-hash",
		Kind:     faults.CPU,
		Does:     "the hash of a customer's name looks only at its first letters, which are nearly always the same: a bucket has them all",
		Repair:   "the hash looks at the whole name",
		Function: "spanflame/workload.(*customerIndex).find",
		Victim:   faults.Request{Method: "GET", Path: "/api/customers", PerSecond: 5},
		Knobs:    []faults.Knob{{Name: "lookups", Unit: "lookups", Default: lookups, Min: 1, Max: 10_000}},
		Cap:      "10000 lookups, which take less than a second",
	}})
	seed := maphash.MakeSeed()
	good := newCustomerIndex(func(name string) uint64 { return maphash.String(seed, name) })
	bad := newCustomerIndex(hashOfFirstLetters)
	s.handle("GET /api/customers", func(r *http.Request) (any, error) {
		if _, err := queryInts(r); err != nil {
			return nil, err
		}
		if knobs, on := f.settings(); on {
			return bad.findAll(knobs[0]), nil
		}
		return good.findAll(lookups), nil
	})
}

// hashOfFirstLetters is the fault.
func hashOfFirstLetters(name string) uint64 {
	hash := uint64(0)
	for i := range min(4, len(name)) {
		hash = hash*31 + uint64(name[i])
	}
	return hash
}

func newCustomerIndex(hash func(string) uint64) *customerIndex {
	x := &customerIndex{hash: hash}
	for i := range indexed {
		name := customerName(i)
		bucket := hash(name) % uint64(len(x.buckets))
		x.buckets[bucket] = append(x.buckets[bucket], customer{name, i})
	}
	return x
}

func customerName(i int) string { return fmt.Sprintf("customer-%06d", i) }

// found is the answer to GET /api/customers.
type found struct {
	Found int `json:"found"`
}

func (x *customerIndex) findAll(n int) found {
	var answer found
	for i := range n {
		if _, ok := x.find(customerName(i * 7 % indexed)); ok {
			answer.Found++
		}
	}
	return answer
}

//go:noinline
func (x *customerIndex) find(name string) (number int, ok bool) {
	for _, c := range x.buckets[x.hash(name)%uint64(len(x.buckets))] {
		if c.name == name {
			return c.number, true
		}
	}
	return 0, false
}

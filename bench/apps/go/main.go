// A service with one dependency, as small ones are.
package main

import (
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"

	"rsc.io/quote"
)

var version = "unknown"

func main() {
	check := flag.Bool("check", false, "ask the running service")
	flag.Parse()
	if *check {
		if r, err := http.Get("http://127.0.0.1:8080/"); err != nil || r.StatusCode != http.StatusOK {
			os.Exit(1)
		}
		return
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "go %s: %s\n", version, quote.Go()) })
	log.Fatal(http.ListenAndServe(":8080", nil))
}

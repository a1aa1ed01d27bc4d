;; Grows a table without end. By hand, because Rust has no way to grow a table: the test makes a component of it.
;;
;; `key` says who it is: an order whose key begins with "s" sins. The insert is the one of the other guests.
(module
  (import "hapax:plugin/context@0.1.0" "key" (func $key (param i32)))
  (import "hapax:plugin/sql@0.1.0" "execute" (func $execute (param i32 i32 i32 i32 i32)))
  (memory (export "memory") 2)
  (table $table 1 funcref)
  (global $next (mut i32) (i32.const 8192))
  (data (i32.const 2048) "INSERT INTO t_effects (order_id, step) VALUES ($1, 0)")

  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 15)) (i32.const -16)))
    (global.set $next (i32.add (local.get $at) (local.get 3)))
    (local.get $at))

  (func (export "handle") (param $envelope i32) (result i32)
    ;; Address and length of the key, at 3072.
    (call $key (i32.const 3072))
    ;; One parameter at 4096: a `text` (the fifth case of `value`), the key.
    (i32.store8 (i32.const 4096) (i32.const 4))
    (i32.store (i32.const 4104) (i32.load (i32.const 3072)))
    (i32.store (i32.const 4108) (i32.load (i32.const 3076)))
    (call $execute (i32.const 2048) (i32.const 53) (i32.const 4096) (i32.const 1) (i32.const 5120))
    ;; An error of the database would be a 1.
    (if (i32.load8_u (i32.const 5120)) (then unreachable))
    (if (i32.eq (i32.load8_u (i32.load (i32.const 3072))) (i32.const 0x73)) ;; "s"
      (then (loop $more
        (drop (table.grow $table (ref.null func) (i32.const 1000)))
        (br $more))))
    ;; Memory is zero there: ok(done).
    (i32.const 1024)))

-- The tables of the demo's database, in the order in which they are filled.

CREATE TABLE category (
    category_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    department TEXT NOT NULL
);

CREATE TABLE supplier (
    supplier_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    country TEXT NOT NULL,
    rating REAL,
    since TEXT NOT NULL
);

CREATE TABLE product (
    product_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    brand TEXT NOT NULL,
    color TEXT,
    price REAL NOT NULL,
    stock INTEGER NOT NULL,
    launched TEXT NOT NULL,
    retired TEXT,
    category_id INTEGER NOT NULL REFERENCES category (category_id),
    supplier_id INTEGER NOT NULL REFERENCES supplier (supplier_id)
);

CREATE TABLE tag (
    tag_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

CREATE TABLE product_tag (
    product_id INTEGER NOT NULL REFERENCES product (product_id),
    tag_id INTEGER NOT NULL REFERENCES tag (tag_id),
    PRIMARY KEY (product_id, tag_id)
);

CREATE TABLE store (
    store_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    city TEXT,
    area INTEGER,
    opened TEXT NOT NULL
);

CREATE TABLE employee (
    employee_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    salary INTEGER NOT NULL,
    hired TEXT NOT NULL,
    left_on TEXT,
    store_id INTEGER NOT NULL REFERENCES store (store_id),
    manager_id INTEGER REFERENCES employee (employee_id)
);

CREATE TABLE customer (
    customer_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    city TEXT NOT NULL,
    email TEXT,
    birth_year INTEGER,
    tier TEXT NOT NULL,
    joined TEXT NOT NULL
);

CREATE TABLE purchase (
    purchase_id INTEGER PRIMARY KEY,
    ordered TEXT NOT NULL,
    shipped TEXT,
    status TEXT NOT NULL,
    payment TEXT NOT NULL,
    customer_id INTEGER NOT NULL REFERENCES customer (customer_id),
    store_id INTEGER NOT NULL REFERENCES store (store_id),
    employee_id INTEGER REFERENCES employee (employee_id)
);

CREATE TABLE order_line (
    purchase_id INTEGER NOT NULL REFERENCES purchase (purchase_id),
    line INTEGER NOT NULL,
    product_id INTEGER NOT NULL REFERENCES product (product_id),
    quantity INTEGER NOT NULL,
    price REAL NOT NULL,
    PRIMARY KEY (purchase_id, line)
);

-- Only migrations write which of them have run: takes from other roles what the privileges of new tables gave them.
\set ON_ERROR_STOP on
SELECT DISTINCT format('REVOKE ALL ON %1$s FROM %2$I; GRANT SELECT ON %1$s TO %2$I', pg_class.oid::regclass, rolname)
  FROM pg_class, aclexplode(relacl) JOIN pg_roles ON pg_roles.oid = grantee
 WHERE pg_class.oid = to_regclass('alembic_version') AND grantee <> relowner AND privilege_type <> 'SELECT'
\gexec
